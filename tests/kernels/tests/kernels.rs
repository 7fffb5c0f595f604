//! The shipped binary under Debian's kernels, in QEMU: `make test-kernels`.

mod stage;

use std::collections::BTreeMap;

use stage::{boot, faults, page, table};
use testkit::{Failure, OrFail, workspace};

/// All that is played when `SCENES` names nothing.
const SCENES: &str = "one many=128 eater=12 ladder strict kinds exec files locked";

#[tokio::test]
#[ignore = "takes QEMU and kernels: run `make test-kernels`"]
async fn every_kernel_keeps_what_is_promised() -> Result<(), Failure> {
    let wanted = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
    let for_amd64 = wanted("SCENES").unwrap_or_else(|| SCENES.to_owned());
    let for_arm64 = wanted("SCENES_ARM64").unwrap_or_else(|| for_amd64.clone());
    let scenes_of = |kernel: &boot::Kernel| {
        let scenes = if kernel.architecture.name == "arm64" { &for_arm64 } else { &for_amd64 };
        scenes.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    if wanted("KERNELS_TABLE").as_deref() == Some("only") {
        return write_the_pages(scenes_of);
    }
    let (mut missing, mut found) = (Vec::new(), Vec::new());
    let mut packed: BTreeMap<&str, boot::Initramfs> = BTreeMap::new();
    for kernel in boot::kernels(wanted("KERNELS").as_deref())? {
        let architecture = kernel.architecture;
        if !packed.contains_key(architecture.name) && architecture.equipped() && kernel.present() {
            found.extend(faults::of_binary(architecture)?);
            packed.insert(architecture.name, boot::initramfs(architecture)?);
        }
        let Some(initramfs) = packed.get(architecture.name).filter(|_| kernel.present()) else {
            println!("SKIPPED: no QEMU or no kernel {}; tests/kernels/install-kernels.sh says why", kernel.name);
            missing.push(kernel.name);
            continue;
        };
        let scenes = scenes_of(&kernel);
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
        write_the_pages(scenes_of)?;
    }
    let strict = wanted("REQUIRE_ROOT").is_some() || wanted("CI").as_deref() == Some("true");
    assert!(!strict || missing.is_empty(), "not run: {missing:?}");
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
    Ok(())
}

/// From what this binary has done under each kernel, in this run or in earlier ones: all of them take hours where the
/// processor is emulated and busy. What is not there is named. An architecture without any run keeps its page.
fn write_the_pages(scenes_of: impl Fn(&boot::Kernel) -> String) -> Result<(), Failure> {
    let mut of: BTreeMap<&str, (Vec<boot::Run>, Vec<String>)> = BTreeMap::new();
    for kernel in boot::kernels(None)? {
        let (runs, missing) = of.entry(kernel.architecture.name).or_default();
        let (name, scenes) = (kernel.name.clone(), scenes_of(&kernel));
        match boot::kept(kernel, &scenes)? {
            Some(run) => runs.push(run),
            None => missing.push(name),
        }
    }
    for (architecture, (runs, missing)) in of.iter().filter(|(_, (runs, _))| !runs.is_empty()) {
        let place = workspace().join("src/manual/evidence/kernels.md");
        let before = std::fs::read_to_string(&place).or_fail("read the page")?;
        std::fs::write(place, page::page(&before, architecture, runs, missing)).or_fail("write the page")?;
    }
    Ok(())
}
