//! The trust anchors of ROOTCA: the union of what the CA answers, its root file and further files, followed as they
//! change, without a call to the CA.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use testkit::{
    Failure, OrFail,
    development_ca::{Lifetime, Pki, PkiOptions, ProjectedVolume},
    fixture::{Open, Site, renew, write},
    shim::{Shim, ShimBuilder},
};

/// The kernel tells of a change at once: a limit for loaded machines only.
const SOON: Duration = Duration::from_secs(10);

/// A workload whose shim holds a certificate.
struct Served {
    scene: Site,
    shim: Shim,
    default: Open,
    roots: Open,
}

impl Served {
    /// Starts the shim and returns the anchors that it serves at first.
    async fn start(scene: Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<(Self, String), Failure> {
        let mut shim = edit(scene.shim()).start()?;
        let client = shim.connect().await?;
        let (mut default, mut roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        default.next(&shim).await?;
        let anchors = roots.next(&shim).await?.trusted_ca_pem;
        Ok((Self { scene, shim, default, roots }, anchors))
    }

    /// The next anchors that are pushed, soon and without a call to the CA.
    async fn pushed(&mut self) -> Result<String, Failure> {
        let since = Instant::now();
        let anchors = self.roots.next(&self.shim).await?.trusted_ca_pem;
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        assert_eq!(self.scene.ca.calls().len(), self.scene.issued().len());
        self.default.expect_silence(&self.shim).await?;
        Ok(anchors)
    }

    /// Nothing is pushed at this moment.
    async fn quiet(&mut self) -> testkit::Result {
        self.roots.expect_silence(&self.shim).await
    }

    async fn renew(&mut self) -> testkit::Result {
        renew(&self.shim)?;
        self.default.next(&self.shim).await.map(drop)
    }
}

/// Roots of their own, by name.
fn roots(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| Pki::new(name).root_pem()).collect()
}

fn with_files(files: &[&Path]) -> impl FnOnce(ShimBuilder) -> ShimBuilder + use<> {
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    move |shim| shim.env("SDS_SHIM_EXTRA_ROOTS", files.join(","))
}

fn file(scene: &Site, name: &str) -> PathBuf {
    scene.workload.path().join(name)
}

fn renamed(path: &Path, content: &str) -> testkit::Result {
    let fresh = path.with_extension("fresh");
    write(&fresh, content)?;
    fs::rename(fresh, path).or_fail("rename")
}

#[tokio::test]
async fn the_union_of_the_answer_the_ca_root_file_and_the_extra_files_is_served() -> testkit::Result {
    let scene = Site::new().await?;
    let more = roots(&["answered", "in the CA root file", "one", "two"]);
    let own = scene.pki.root_pem();
    scene.ca.set_extra_roots(vec![more[0].clone()]);
    scene.write_root(&format!("{own}{}", more[1]))?;
    let (one, two) = (file(&scene, "one.pem"), file(&scene, "two.pem"));
    // Without the last newline, and with what others hold as well.
    write(&one, more[2].trim_end())?;
    write(&two, &format!("{}{}{own}", more[3], more[1]))?;
    let (mut served, anchors) = Served::start(scene, with_files(&[&one, &two])).await?;
    assert_eq!(anchors, [own, more.concat()].concat());
    assert_eq!(served.shim.log().count("trust anchors in"), 0, "nothing is wrong with them");
    served.renew().await?;
    served.quiet().await
}

/// The root file changes in every way that files change; each time that is pushed, and the CA is not asked.
#[tokio::test]
async fn every_kind_of_change_of_a_file_is_pushed_without_a_call() -> testkit::Result {
    let scene = Site::new().await?;
    let own = scene.pki.root_pem();
    let more = roots(&["projected", "in place", "renamed", "created", "swapped"]);
    let volume = ProjectedVolume::create(&file(&scene, "roots"), &[("ca.pem", &more[0])]).or_fail("make a volume")?;
    let (projected, plain) = (volume.dir().join("ca.pem"), file(&scene, "plain.pem"));
    write(&plain, &own)?;
    let edit = with_files(&[&projected, &plain]);
    let (mut served, anchors) = Served::start(scene, |shim| edit(shim).env("SDS_SHIM_ROOT_GRACE", "0s")).await?;
    assert_eq!(anchors, format!("{own}{}", more[0]));

    // The CA's own root stays in the answer, whatever its file holds.
    write(&plain, &more[1])?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}", more[0], more[1]), "written in place");
    renamed(&plain, &more[2])?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}", more[0], more[2]), "renamed over it");
    volume.replace(&[("ca.pem", &more[4])]).or_fail("swap the volume")?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}", more[4], more[2]), "swapped as kubelet does");

    // A file that goes away keeps its last content; the next one replaces it.
    fs::remove_file(&plain).or_fail("delete")?;
    served.shim.wait_for_log("plain.pem: No such file or directory (os error 2); 1 in use").await?;
    served.quiet().await?;
    write(&plain, &more[3])?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}", more[4], more[3]), "made again");
    served.shim.wait_for_log("plain.pem: everything is usable again").await?;
    volume.replace(&[]).or_fail("empty the volume")?;
    served.shim.wait_for_log("ca.pem: No such file or directory (os error 2); 1 in use").await?;
    served.quiet().await?;
    volume.replace(&[("ca.pem", &more[0])]).or_fail("fill the volume again")?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}", more[0], more[3]), "filled again");
    // The CA root file is one of them.
    served.scene.write_root(&format!("{own}{}", more[2]))?;
    assert_eq!(served.pushed().await?, format!("{own}{}{}{}", more[2], more[0], more[3]));
    assert_eq!(served.scene.ca.calls().len(), 1);
    Ok(())
}

#[tokio::test]
async fn another_order_pushes_nothing() -> testkit::Result {
    let scene = Site::new().await?;
    let more = roots(&["one", "two", "three"]);
    let own = scene.pki.root_pem();
    scene.ca.set_extra_roots(vec![more[0].clone(), more[1].clone()]);
    let extra = file(&scene, "extra.pem");
    write(&extra, &more.concat())?;
    let (mut served, before) = Served::start(scene, with_files(&[&extra])).await?;
    assert_eq!(before, own.clone() + &more.concat());
    served.scene.ca.set_extra_roots(vec![more[1].clone(), more[0].clone(), more[1].clone()]);
    served.renew().await?;
    renamed(&extra, &[&more[2], &more[1], &own, &more[0], &more[2]].map(String::as_str).concat())?;
    // The change after it is the first that is pushed.
    let last = Pki::new("last").root_pem();
    let marker = format!("{}{}{own}{}", more[2], more[1], last);
    renamed(&extra, &marker)?;
    let anchors = served.pushed().await?;
    assert!(anchors.ends_with(&last) && anchors.matches("BEGIN").count() == 5, "{anchors}");
    served.quiet().await
}

#[tokio::test]
async fn a_dropped_root_is_served_until_the_last_certificate_under_it_would_have_expired() -> testkit::Result {
    let scene = Site::new().await?;
    let old = Pki::new("old").root_pem();
    let extra = file(&scene, "extra.pem");
    let own = scene.pki.root_pem();
    write(&extra, &old)?;
    scene.ca.set_ttl(Some(Duration::from_secs(6)));
    // It must not renew while this is looked at: the next certificate would have a later end.
    let edit = with_files(&[&extra]);
    let edit = |shim| edit(shim).env("SECRET_GRACE_PERIOD_RATIO", "0").env("SECRET_GRACE_PERIOD_RATIO_JITTER", "0");
    let (mut served, anchors) = Served::start(scene, edit).await?;
    let issued = Instant::now();
    assert_eq!(anchors, format!("{own}{old}"));
    write(&extra, &own)?;
    let anchors = served.roots.next(&served.shim).await?.trusted_ca_pem;
    let gone = issued.elapsed();
    assert_eq!(anchors, own);
    assert!(gone >= Duration::from_millis(4500), "gone after {gone:?}, while certificates under it lived");
    Ok(())
}

#[tokio::test]
async fn the_grace_of_dropped_roots_can_be_set() -> testkit::Result {
    let scene = Site::new().await?;
    let (extra, own, old) = (file(&scene, "extra.pem"), scene.pki.root_pem(), Pki::new("old").root_pem());
    write(&extra, &old)?;
    let edit = with_files(&[&extra]);
    let (mut served, anchors) = Served::start(scene, |shim| edit(shim).env("SDS_SHIM_ROOT_GRACE", "2s")).await?;
    assert_eq!(anchors, format!("{own}{old}"));
    let dropped = Instant::now();
    write(&extra, &own)?;
    assert_eq!(served.pushed().await?, own);
    let gone = dropped.elapsed();
    assert!(gone >= Duration::from_millis(900), "{gone:?} instead of 2 s");
    // One that comes back within its grace stays, as if nothing had happened.
    write(&extra, &old)?;
    assert_eq!(served.pushed().await?, format!("{own}{old}"));
    write(&extra, &own)?;
    served.quiet().await?;
    write(&extra, &old)?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    served.quiet().await
}

#[tokio::test]
async fn a_root_that_the_ca_drops_is_kept_for_its_grace() -> testkit::Result {
    let scene = Site::new().await?;
    let (own, old) = (scene.pki.root_pem(), Pki::new("old").root_pem());
    scene.ca.set_extra_roots(vec![old.clone()]);
    let (mut served, anchors) = Served::start(scene, |shim| shim).await?;
    assert_eq!(anchors, format!("{own}{old}"));
    served.scene.ca.set_extra_roots(Vec::new());
    served.renew().await?;
    served.quiet().await?;
    let fresh = Open::connect(&mut served.shim, "ROOTCA").await?.next(&served.shim).await?.trusted_ca_pem;
    assert_eq!(fresh, anchors, "certificates under it live for a day");
    Ok(())
}

/// Envoy refuses every peer whose path leads to an anchor that has ended, although its successor stands beside it: so one
/// goes when it ends, whichever source still has it, and its source's next call is half a day away.
#[tokio::test]
async fn anchors_go_when_they_end() -> testkit::Result {
    for in_file in [true, false] {
        let scene = Site::new().await?;
        let short = Lifetime { not_before: -86_400, not_after: 5 };
        let old = Pki::with_options(&PkiOptions { root: short, ..PkiOptions::new("old") }).root_pem();
        let (own, extra) = (scene.pki.root_pem(), file(&scene, "extra.pem"));
        write(&extra, if in_file { &old } else { &own })?;
        if !in_file {
            scene.ca.set_extra_roots(vec![old.clone()]);
        }
        let (mut served, anchors) = Served::start(scene, with_files(&[&extra])).await?;
        assert!(anchors.contains(&own) && anchors.contains(&old), "{anchors}");
        assert_eq!(served.pushed().await?, own);
        served.shim.wait_for_log("CN=old expired at").await?;
        served.quiet().await?;
        assert_eq!(served.shim.log().count("expired at"), 1, "told once");
    }
    Ok(())
}

#[tokio::test]
async fn bad_anchors_in_a_file_are_skipped_and_reported_once() -> testkit::Result {
    let scene = Site::new().await?;
    let past = Lifetime { not_before: -86_400, not_after: -3600 };
    let expired = Pki::with_options(&PkiOptions { root: past, ..PkiOptions::new("expired") }).root_pem();
    let leaf = scene.issue(&scene.workload.spiffe_id()).chain_pem;
    let leaf = leaf.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default().to_owned();
    let broken = expired.replacen("MII", "AII", 1);
    let (own, good, next) = (scene.pki.root_pem(), Pki::new("good").root_pem(), Pki::new("next").root_pem());
    let extra = file(&scene, "extra.pem");
    write(&extra, &format!("{expired}{leaf}{broken}{good}"))?;
    let (mut served, anchors) = Served::start(scene, with_files(&[&extra])).await?;
    assert_eq!(anchors, format!("{own}{good}"));
    let line = served.shim.wait_for_log("extra.pem: certificate 1 skipped: it expired at").await?;
    for part in ["certificate 2 skipped: it is not a CA", "certificate 3 skipped: it cannot", "1 in use"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    write(&extra, &format!("{expired}{leaf}{broken}{good}{next}"))?;
    assert_eq!(served.pushed().await?, format!("{own}{good}{next}"));
    assert_eq!(served.shim.log().count("extra.pem"), 1, "told once");
    // A file without any good one keeps what it had.
    write(&extra, &expired)?;
    served.shim.wait_for_log("extra.pem: certificate 1 in it expired at").await?;
    write(&extra, "rubbish")?;
    served.shim.wait_for_log("extra.pem: it holds no PEM certificate; 2 in use").await?;
    write(&extra, &"x".repeat(9 << 20))?;
    served.shim.wait_for_log("extra.pem: the file holds more than").await?;
    served.quiet().await
}

/// The TLS client's trust follows the file: nobody has to fail first.
#[tokio::test]
async fn a_new_root_of_the_cas_server_is_trusted_from_the_next_call_on() -> testkit::Result {
    let scene = Site::new().await?;
    let own = scene.pki.root_pem();
    let (mut served, _) = Served::start(scene, |shim| shim).await?;
    let other = Pki::new("other").root_pem();
    served.scene.write_root(&other)?;
    assert_eq!(served.pushed().await?, own.clone() + &other);
    renew(&served.shim)?;
    served.shim.wait_for_log("the server certificate was rejected").await?;
    served.scene.write_root(&(other.clone() + &own))?;
    served.default.next(&served.shim).await?;
    served.scene.write_root(&own)?;
    served.renew().await?;
    assert_eq!(served.scene.ca.calls().len(), 3, "each call that could be made was answered");
    Ok(())
}

#[tokio::test]
async fn a_missing_extra_file_is_named_and_found_later() -> testkit::Result {
    let scene = Site::new().await?;
    let (own, later) = (scene.pki.root_pem(), Pki::new("later").root_pem());
    let extra = file(&scene, "not/yet/there.pem");
    let (mut served, anchors) = Served::start(scene, with_files(&[&extra])).await?;
    assert_eq!(anchors, own);
    served.shim.wait_for_log("there.pem: No such file or directory (os error 2); 0 in use").await?;
    fs::create_dir_all(file(&served.scene, "not/yet")).or_fail("make a directory")?;
    write(&extra, &later)?;
    assert_eq!(served.pushed().await?, own + &later);
    Ok(())
}

/// Lets the user namespace of a shim have no more inotify watches than it has now.
fn no_more_watches(shim: &Shim) -> testkit::Result {
    let pid = shim.pid();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).or_fail("list the descriptors")?.flatten();
    let told: String = descriptors.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
    // The instance has two descriptors.
    let held = told.lines().filter(|line| line.starts_with("inotify ")).collect::<BTreeSet<_>>().len();
    let script = format!("echo {held} > /proc/sys/user/max_inotify_watches");
    let mut command = Command::new("nsenter");
    let command = command.arg(format!("--user=/proc/{pid}/ns/user")).args(["sh", "-c", &script]);
    let status = command.status().or_fail("run nsenter")?;
    assert!(status.success() && held > 0, "{status}, {held} watches");
    Ok(())
}

/// Needs root. A renewal that is asked for has the files read in the middle of the pause between two looks.
#[tokio::test]
async fn without_inotify_watches_files_are_polled() -> testkit::Result {
    let scene = Site::new().await?;
    let extra = Path::new("./deep/extra.pem");
    let edit = |shim| with_files(&[extra])(shim).through(&["unshare", "--user", "--map-root-user"]);
    let (mut served, _) = Served::start(scene, edit).await?;
    served.shim.wait_for_log("extra.pem: No such file").await?;
    no_more_watches(&served.shim)?;
    let directory = served.scene.workload.path().join("deep");
    fs::create_dir(&directory).or_fail("make the directory")?;
    served.shim.wait_for_log("No space left on device (os error 28) (fs.inotify.max_user_watches may be").await?;
    served.renew().await?;
    let next = Pki::new("next").root_pem();
    write(&directory.join("extra.pem"), &next)?;
    assert!(served.pushed().await?.ends_with(&next));
    Ok(())
}
