//! systemd as the first process, with the unit and all its hardening: the guide's commands as they stand, restarts,
//! reboots, another user's Envoy.

use std::{fs, path::Path};

use testkit::{Failure, OrFail, scratch::Scratch, workspace};

use crate::{machine::Machine, packages::package};

const GUIDE: &str = "src/manual/guide/virtual_machine.md";
const CERTIFICATE: &str = "runuser -u istio-proxy -- sh -c 'cd / && sds-shim get default'";

/// The commands of a section of the guide.
fn commands(section: &str) -> String {
    let guide = fs::read_to_string(workspace().join(GUIDE)).expect("the guide");
    let from = guide.split(&format!("\n## {section}\n")).nth(1).unwrap_or_else(|| panic!("no section {section:?}"));
    let block = from.split("```sh\n").nth(1).expect("it has commands");
    block.split("```").next().expect("they end").to_owned()
}

/// A machine with the tree that the guide begins in, a CA where the guide has it, and a token.
struct Site {
    debian: Machine,
    scratch: Scratch,
}

impl Site {
    async fn new() -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let tree = scratch.path().join("tree");
        let put = |from: &Path, to: &str| {
            let to = tree.join(to);
            fs::create_dir_all(to.parent().unwrap_or(&tree))
                .and_then(|()| fs::copy(from, &to))
                .or_fail(format!("put {} into the tree", from.display()))
        };
        put(&testkit::shim::program()?, "target/dist/sds-shim")?;
        for file in ["packaging/systemd/sds-shim.conf", "packaging/systemd/sds-shim.service"] {
            put(&workspace().join(file), file)?;
        }
        put(&workspace().join("target/debug/development-ca"), "development-ca")?;
        package(&tree.join("target/deb"))?;
        let debian = Machine::boot("bookworm", &[(&tree, "/tree")]).await?;
        let site = Self { debian, scratch };
        site.ca().await?;
        site.debian.sh("cp -r /tree /root/tree; cp /var/ca/root-cert.pem /root/tree; cd tree; \
             ./development-ca token --dir /var/ca --namespace foo --service-account sleep >istio-token")?;
        Ok(site)
    }

    /// The CA, which no unit starts after a boot.
    async fn ca(&self) -> testkit::Result {
        self.debian.sh("systemd-run --quiet --unit ca /tree/development-ca serve --dir /var/ca")?;
        self.debian.until("test -s /var/ca/root-cert.pem; journalctl --unit ca | grep -q 15012").await.map(drop)
    }

    fn follow(&self, section: &str) -> Result<String, Failure> {
        fs::write(self.scratch.path().join("commands"), commands(section)).or_fail("write the commands")?;
        self.debian.copy(&self.scratch.path().join("commands"), "/root/commands")?;
        self.debian.sh("cd tree; sh -eu /root/commands")
    }

    /// The certificate that is served, once there is one.
    async fn served(&self) -> Result<String, Failure> {
        self.debian.until(CERTIFICATE).await
    }
}

#[tokio::test]
async fn the_guide_holds_by_hand_with_every_restart() -> testkit::Result {
    if !crate::possible() {
        return Ok(());
    }
    let site = Site::new().await?;
    let told = site.follow("Install by hand")?;
    assert!(told.contains("ready") && told.contains("spiffe://cluster.local/ns/foo/sa/sleep"), "{told}");
    let debian = &site.debian;
    let journal = debian.sh("journalctl --unit sds-shim --output cat")?;
    assert!(journal.contains("keys are in secret memory (32 KiB), the whole process is locked"), "{journal}");
    assert!(!journal.contains("could have attached"), "the program can be read: {journal}");

    let first = site.served().await?;
    debian.sh("systemctl reload sds-shim")?;
    let reloaded = site.served().await?;
    assert_ne!(first, reloaded, "reload renews");

    site.follow("Keep the identity over restarts")?;
    debian.until("test -s /etc/certs/cert-chain.pem").await?;
    // From here on no token helps, and the filter of our own is added to the unit's.
    debian.sh("rm /etc/sds-shim/istio-token; echo SDS_SHIM_SECCOMP=strict >>/etc/sds-shim/environment; \
         systemctl restart sds-shim")?;
    let restarted = site.served().await?;
    assert_ne!(restarted, reloaded);
    debian.until("journalctl --unit sds-shim --output cat | grep -q 'sandbox: seccomp rejects'").await?;

    debian.reboot().await?;
    site.ca().await?;
    let booted = site.served().await?;
    assert_ne!(booted, restarted);
    debian.sh("systemctl is-active sds-shim; systemctl reload sds-shim")?;
    assert_ne!(site.served().await?, booted, "with the filter as well");
    // It ends in order, within the time that it has.
    debian.sh("systemctl stop sds-shim; test \"$(systemctl show --property Result sds-shim)\" = Result=success")?;
    Ok(())
}

#[tokio::test]
async fn the_guide_holds_with_the_package_and_for_an_envoy_of_another_user() -> testkit::Result {
    if !crate::possible() {
        return Ok(());
    }
    let site = Site::new().await?;
    let told = site.follow("Install the package")?;
    assert!(told.contains("ready") && told.contains("spiffe://cluster.local/ns/foo/sa/sleep"), "{told}");
    let debian = &site.debian;
    site.served().await?;

    // An Envoy of another user.
    debian.sh("useradd --system --shell /bin/sh envoy")?;
    let asks = "runuser -u envoy -- sh -c 'cd / && sds-shim health'";
    assert!(debian.sh(asks).is_err(), "it was let in unasked");
    debian.sh("echo SDS_SHIM_ALLOW_UIDS=$(id -u envoy) >>/etc/sds-shim/environment; systemctl restart sds-shim")?;
    debian.until(asks).await?;

    debian.sh("dpkg --purge sds-shim; test ! -e /etc/sds-shim; ! systemctl is-active sds-shim")?;
    debian
        .sh("! systemctl is-enabled sds-shim; test -z \"$(find /run/secrets -name '*.pem' -o -name istio-token)\"")?;
    Ok(())
}
