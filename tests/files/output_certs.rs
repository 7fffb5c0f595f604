//! `OUTPUT_CERTS`: key, chain and trust anchors in files, renewed without anybody who subscribes, and never mixed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use openssl::{pkey::PKey, x509::X509};
use testkit::{
    Failure, OrFail, POLL,
    fixture::{Logged, Site},
};

fn serial(directory: &Path) -> Option<String> {
    let chain = fs::read(directory.join("cert-chain.pem")).ok()?;
    testkit::tls::serial(&X509::from_pem(&chain).ok()?).ok()
}

/// Waits for another certificate in the files than `before`.
async fn next(directory: &Path, before: Option<&str>, shim: &Logged) -> Result<String, Failure> {
    let another = || serial(directory).filter(|now| Some(now.as_str()) != before);
    shim.until("another certificate in the files", another).await
}

/// Whether key and chain of the directory that is current now belong together.
fn is_a_pair(directory: &Path) -> bool {
    // What a careful reader does: the directory is looked up once.
    let Ok(generation) = fs::canonicalize(directory.join("..data")) else { return true };
    let read = |file: &str| fs::read(generation.join(file));
    let (Ok(chain), Ok(key)) = (read("cert-chain.pem"), read("key.pem")) else { return true };
    let (leaf, key) =
        (X509::from_pem(&chain).expect("a whole chain"), PKey::private_key_from_pem(&key).expect("a key"));
    leaf.public_key().expect("it has one").public_eq(&key)
}

fn output(site: &Site) -> PathBuf {
    site.workload.path().join("output")
}

#[tokio::test]
async fn files_follow_the_certificate_without_a_subscriber() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    let mut held = next(&directory, None, &shim).await?;
    let end = Arc::new(AtomicBool::new(false));
    let reader = {
        let (end, directory) = (Arc::clone(&end), directory.clone());
        thread::spawn(move || {
            let (mut read, mut mixed) = (0, 0);
            while !end.load(Ordering::Relaxed) {
                read += 1;
                mixed += usize::from(!is_a_pair(&directory));
            }
            (read, mixed)
        })
    };
    for _ in 0..20 {
        shim.signal(Signal::SIGUSR1)?;
        held = next(&directory, Some(&held), &shim).await?;
    }
    end.store(true, Ordering::Relaxed);
    let (read, mixed) = reader.join().expect("the reader lives");
    assert!(read > 20 && mixed == 0, "{mixed} of {read} reads were of two generations");
    assert_eq!(fs::read_to_string(directory.join("root-cert.pem")).or_fail("the roots")?, site.pki.root_pem());
    // One generation, one link to it, four names.
    let swept = || (fs::read_dir(&directory).map_or(0, Iterator::count) == 6).then_some(());
    shim.until("the last generation alone", swept).await
}

#[tokio::test]
async fn mode_and_group_are_as_configured() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    let shim = site.shim().env("OUTPUT_CERTS", directory.display().to_string());
    for (mode, gid, shim) in [
        (0o640, nix::unistd::getegid().as_raw(), shim.clone()),
        (0o440, 4242, shim.clone().env("SDS_SHIM_OUTPUT_MODE", "0440").env("SDS_SHIM_OUTPUT_GID", "4242")),
    ] {
        let before = serial(&directory);
        let shim = Logged(shim.start()?);
        next(&directory, before.as_deref(), &shim).await?;
        let found = |file: &str| fs::metadata(directory.join(file)).or_fail("look at a file");
        let key = found("key.pem")?;
        assert_eq!((key.permissions().mode() & 0o777, key.gid()), (mode, gid));
        assert_eq!(found("cert-chain.pem")?.permissions().mode() & 0o777, 0o644);
        shim.wait_for_log("private keys written there may outlive the pod").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tmpfs_is_not_warned_about() -> testkit::Result {
    let site = Site::new().await?;
    let directory = PathBuf::from(format!("/dev/shm/sds-shim-{}", std::process::id()));
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    let written = next(&directory, None, &shim).await;
    fs::remove_dir_all(&directory).or_fail("clean up")?;
    written?;
    assert_eq!(shim.log().count("not on a tmpfs"), 0);
    Ok(())
}

#[tokio::test]
async fn files_of_another_agent_give_way() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    fs::create_dir(&directory).or_fail("make the directory")?;
    for file in ["key.pem", "cert-chain.pem", "root-cert.pem"] {
        fs::write(directory.join(file), "old").or_fail("write a file")?;
    }
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    next(&directory, None, &shim).await?;
    assert!(is_a_pair(&directory) && fs::read_link(directory.join("key.pem")).is_ok());
    Ok(())
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_and_tried_again() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    fs::write(&directory, "in the way").or_fail("write a file")?;
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    shim.wait_for_log("the previous files stay in place").await?;
    fs::remove_file(&directory).or_fail("clear the way")?;
    next(&directory, None, &shim).await?;
    shim.wait_for_log("writing succeeds again").await?;
    Ok(())
}

/// What lies in the directory under the name of a generation.
fn generations(directory: &Path) -> usize {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().contains('_')).count()
}

#[tokio::test]
async fn an_irreplaceable_name_is_reported_and_leaves_one_key() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    let key = directory.join("key.pem");
    fs::create_dir_all(&key).or_fail("make a directory in the way")?;
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    let current = directory.join("..data");
    let mut held = next(&current, None, &shim).await?;
    for _ in 0..3 {
        shim.signal(Signal::SIGUSR1)?;
        held = next(&current, Some(&held), &shim).await?;
    }
    let removed = async {
        while generations(&directory) != 1 {
            tokio::time::sleep(POLL).await;
        }
    };
    let removed = tokio::time::timeout(Duration::from_secs(3), removed).await;
    removed.map_err(|_| shim.failure(format!("{} generations lie there", generations(&directory))))?;
    let told = format!("{}: Is a directory (os error 21); the new files are in ..data, but", key.display());
    shim.wait_for_log(&told).await?;
    assert_eq!((shim.log().count("Is a directory"), shim.log().count("previous files stay")), (1, 0));
    fs::remove_dir(&key).or_fail("clear the way")?;
    next(&directory, None, &shim).await?;
    shim.wait_for_log("writing succeeds again").await?;
    assert!(is_a_pair(&directory) && generations(&directory) == 1);
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_there_keeps_its_mode() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    fs::create_dir(&directory).or_fail("make the directory")?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).or_fail("close the directory")?;
    let nested = directory.join("made/by us");
    for directory in [&directory, &nested] {
        let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
        next(directory, None, &shim).await?;
    }
    let mode = |path: &Path| Ok::<_, Failure>(fs::metadata(path).or_fail("look at it")?.permissions().mode() & 0o777);
    assert_eq!((mode(&directory)?, mode(&directory.join("made"))?, mode(&nested)?), (0o700, 0o755, 0o755));
    Ok(())
}

#[tokio::test]
async fn only_leftovers_of_a_crash_are_removed() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    let place = |name: &str, age: u64| {
        let path = directory.join(name);
        fs::create_dir_all(&path)?;
        fs::write(path.join("key.pem"), "left behind")?;
        fs::File::open(&path)?.set_modified(SystemTime::now() - Duration::from_secs(age))
    };
    for (name, age) in [("..7_0", 3600), ("..8_1", 0), ("..2026_11_25_00_00_00.1", 3600), ("7_0", 3600)] {
        place(name, age).or_fail("leave something behind")?;
    }
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    let held = next(&directory, None, &shim).await?;
    // The second time tells that the first is over.
    shim.signal(Signal::SIGUSR1)?;
    next(&directory, Some(&held), &shim).await?;
    let there = |name: &str| directory.join(name).exists();
    assert!(!there("..7_0"), "the generation that was left behind is still there");
    assert!(there("..8_1"), "another process may be writing it");
    assert!(there("..2026_11_25_00_00_00.1") && there("7_0"), "these are not ours");
    Ok(())
}

#[tokio::test]
async fn the_target_of_a_foreign_link_is_kept() -> testkit::Result {
    let site = Site::new().await?;
    let directory = output(&site);
    let theirs = site.workload.path().join("theirs");
    for place in [&directory, &theirs] {
        fs::create_dir(place).or_fail("make a directory")?;
    }
    fs::write(theirs.join("key.pem"), "theirs").or_fail("write a file")?;
    symlink("../theirs", directory.join("..data")).or_fail("link to it")?;
    let shim = Logged(site.shim().env("OUTPUT_CERTS", directory.display().to_string()).start()?);
    let held = next(&directory, None, &shim).await?;
    // The second time tells that the first is over.
    shim.signal(Signal::SIGUSR1)?;
    next(&directory, Some(&held), &shim).await?;
    assert_eq!(fs::read_to_string(theirs.join("key.pem")).or_fail("read their file")?, "theirs");
    Ok(())
}

/// A generation that is not on the disk before its name is would be lost with the power.
#[tokio::test]
async fn files_are_on_the_disk_before_they_are_current() -> testkit::Result {
    let site = Site::new().await?;
    let (directory, trace) = (output(&site), site.workload.path().join("trace"));
    let launcher = [
        "strace",
        // Beside the shim instead of above it, so that the shim is what the test ends.
        "-D",
        "-y",
        "-s",
        "4096",
        "-e",
        "trace=fsync,rename,renameat,renameat2",
        "-o",
        &trace.display().to_string(),
    ];
    let shim = site.shim().env("OUTPUT_CERTS", directory.display().to_string()).through(&launcher);
    // Whoever is traced may not be able to protect its memory as usual.
    let shim = Logged(shim.env("SDS_SHIM_REQUIRE_LOCKED", "none").start()?);
    next(&directory, None, &shim).await?;
    // The directory comes last.
    let written = || fs::read_to_string(&trace).ok().filter(|text| text.contains("/output>) = 0\n"));
    let text = shim.until("an fsync of the directory", written).await?;
    // Its names are in memory that a tracer cannot read: of a rename only that there was one is seen.
    let calls: Vec<_> = text
        .lines()
        .skip_while(|line| !line.contains("key.pem>"))
        .map(|line| if line.starts_with("rename") { "rename" } else { line.rsplit(['/', '>']).nth(1).unwrap_or(line) })
        .map(|call| if call.starts_with("..") { "generation" } else { call })
        .collect();
    let files = ["key.pem", "cert-chain.pem", "root-cert.pem", "spiffe-bundle-map.json", "generation"];
    assert_eq!(calls, [&files[..], &["rename"; 5], &["output"]].concat(), "{text}");
    Ok(())
}
