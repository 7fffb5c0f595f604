//! The shipped binary under Debian's kernels, in QEMU: `make test-kernels`.

mod stage;

use stage::{boot, faults, page, table};
use testkit::{Failure, OrFail, workspace};

/// All that is played when `SCENES` names nothing.
const SCENES: &str = "one many=128 eater=12 ladder strict kinds";

#[tokio::test]
#[ignore = "takes QEMU and kernels: run `make test-kernels`"]
async fn every_kernel_keeps_what_is_promised() -> Result<(), Failure> {
    let wanted = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
    let scenes = wanted("SCENES").unwrap_or_else(|| SCENES.to_owned());
    if wanted("KERNELS_TABLE").as_deref() == Some("only") {
        return write_the_page(&scenes);
    }
    let (mut missing, mut found) = (Vec::new(), Vec::new());
    let initramfs = if boot::equipped() { Some(boot::initramfs()?) } else { None };
    for kernel in boot::kernels(wanted("KERNELS").as_deref())? {
        let Some(initramfs) = initramfs.as_ref().filter(|_| kernel.present()) else {
            println!("SKIPPED: no QEMU or no kernel {}; tests/kernels/install-kernels.sh says why", kernel.name);
            missing.push(kernel.name);
            continue;
        };
        println!("{} ({}): {scenes}", kernel.name, kernel.version());
        let run = boot::run(kernel, initramfs, &scenes).await?;
        boot::keep(&run, &scenes)?;
        let faults = faults::of(&run, &scenes);
        println!(
            "{}{}",
            table::summary(&run),
            faults.iter().map(|fault| format!("  FAULT {fault}\n")).collect::<String>()
        );
        found.extend(faults.into_iter().map(|fault| format!("{}: {fault}", run.kernel.name)));
    }
    if wanted("KERNELS_TABLE").is_some() {
        write_the_page(&scenes)?;
    }
    let strict = wanted("REQUIRE_ROOT").is_some() || wanted("CI").as_deref() == Some("true");
    assert!(!strict || missing.is_empty(), "not run: {missing:?}");
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
    Ok(())
}

/// From what this binary has done under each kernel, in this run or in earlier ones: all of them take hours where the
/// processor is emulated and busy. What is not there is named.
fn write_the_page(scenes: &str) -> Result<(), Failure> {
    let (mut runs, mut missing) = (Vec::new(), Vec::new());
    for kernel in boot::kernels(None)? {
        let name = kernel.name.clone();
        match boot::kept(kernel, scenes)? {
            Some(run) => runs.push(run),
            None => missing.push(name),
        }
    }
    let place = workspace().join("src/manual/evidence/kernels.md");
    std::fs::write(place, page::page(&runs, &missing)).or_fail("write the page")
}
