//! The shipped binary under Debian's kernels, in QEMU: `make test-kernels`.

mod stage;

use stage::{boot, faults, table};
use testkit::{Failure, OrFail, workspace};

/// All that is played when `SCENES` names nothing.
const SCENES: &str = "one many=128 eater=12 ladder strict kinds";

#[tokio::test]
#[ignore = "takes QEMU and kernels: run `make test-kernels`"]
async fn every_kernel_keeps_what_is_promised() -> Result<(), Failure> {
    let wanted = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
    let scenes = wanted("SCENES").unwrap_or_else(|| SCENES.to_owned());
    let (mut runs, mut missing, mut found) = (Vec::new(), Vec::new(), Vec::new());
    let initramfs = if boot::equipped() { Some(boot::initramfs()?) } else { None };
    for kernel in boot::kernels(wanted("KERNELS").as_deref())? {
        let Some(initramfs) = initramfs.as_ref().filter(|_| kernel.present()) else {
            println!("SKIPPED: no QEMU or no kernel {}; tests/kernels/install-kernels.sh says why", kernel.name);
            missing.push(kernel.name);
            continue;
        };
        println!("{} ({}): {scenes}", kernel.name, kernel.version());
        let run = boot::run(kernel, initramfs, &scenes).await?;
        let faults = faults::of(&run, &scenes);
        println!(
            "{}{}",
            table::summary(&run),
            faults.iter().map(|fault| format!("  FAULT {fault}\n")).collect::<String>()
        );
        found.extend(faults.into_iter().map(|fault| format!("{}: {fault}", run.kernel.name)));
        runs.push(run);
    }
    let page = table::page(&runs);
    let mut places = vec![workspace().join("target/kernels/table.md")];
    if wanted("KERNELS_TABLE").is_some() {
        places.push(workspace().join("src/manual/evidence/kernels.md"));
    }
    places.iter().try_for_each(|place| std::fs::write(place, &page)).or_fail("write the table")?;
    let strict = wanted("REQUIRE_ROOT").is_some() || wanted("CI").as_deref() == Some("true");
    assert!(!strict || missing.is_empty(), "not run: {missing:?}");
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
    Ok(())
}
