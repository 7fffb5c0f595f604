//! The unit for virtual machines, held by systemd's own tool.

use std::{fs, path::Path, process::Command};

use testkit::{scratch::Scratch, workspace};

/// What `systemd-analyze security` may say at most: 0 is a service that can do nothing, 10 one that can do all.
const MOST_EXPOSED: f64 = 1.4;

fn unit() -> String {
    fs::read_to_string(workspace().join("packaging/systemd/sds-shim.service")).expect("the unit")
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let ran = Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output();
    let ran = ran.expect("run make systemd");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    (ran.status.success(), told)
}

#[test]
fn the_unit_is_valid_and_exposes_little() {
    let scratch = Scratch::new("tests").expect("a directory");
    // The program must be there, and the tool looks for it on this machine.
    let usual = || workspace().join("target/dist/sds-shim").display().to_string();
    let program = std::env::var("SHIM_BINARY").unwrap_or_else(|_| usual());
    let path = scratch.path().join("sds-shim.service");
    fs::write(&path, unit().replace("/usr/local/bin/sds-shim", &program)).expect("write the unit");
    let (valid, told) = analyze(&["verify", "--man=no"], &path);
    assert!(valid && told.trim().is_empty(), "{told}");

    let (_, told) = analyze(&["security", "--offline=true", "--no-pager"], &path);
    let line = told.lines().find(|line| line.contains("Overall exposure level")).expect("a score");
    println!("{line}");
    let score = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a number");
    assert!(score <= MOST_EXPOSED, "{told}");
}

/// What the program needs, as tests/memory.rs and src/main.rs have it.
#[test]
fn the_unit_gives_what_the_program_needs() {
    let unit = unit();
    for line in ["LimitMEMLOCK=8M", "WorkingDirectory=/", "RestartPreventExitStatus=64 71"] {
        assert!(unit.lines().any(|found| found == line), "{line} is missing");
    }
    let socket = sds_shim::config::SOCKET_DIRECTORY.trim_start_matches("./var/run/");
    assert!(unit.contains(&format!("RuntimeDirectory={socket}\n")), "the socket's directory is another one");
}
