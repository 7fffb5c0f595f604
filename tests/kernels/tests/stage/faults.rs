//! What is promised, held against the facts of a guest.

use std::fs;

use serde_json::Value;
use testkit::{Failure, OrFail};

use super::boot::{Architecture, Run};

/// The most secret memory, in bytes, of a shim with an ECDSA key, and of any shim.
const ECDSA: u64 = 32 << 10;
const MOST: u64 = 64 << 10;
/// What a process may map and have resident, in KiB.
const MAPPED: u64 = 8192;
const RESIDENT: u64 = 6656;
/// The most bytes of the binary for arm64; `tests/measured/memory.rs` holds the one for x86-64.
const ARM64_BINARY: u64 = 4608 << 10;
/// The exit code of too little protection.
const REFUSED: i64 = 71;

/// One sentence for each promise that was not kept.
pub(crate) fn of(run: &Run, scenes: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let counting = run.facts.iter().find_map(|fact| fact["counting"].as_str());
    if counting.is_none() || !run.complete {
        faults.push("the guest did not come to its end; its console is beside the kernel".to_owned());
    }
    let counting = counting.unwrap_or("none");
    let page = run.facts.iter().find_map(|fact| fact["page"].as_u64()).unwrap_or(4096);
    let guest = Guest { counting, page };
    for scene in scenes.split_whitespace().filter_map(|word| word.split('=').next()) {
        let of_scene: Vec<_> = run.facts.iter().filter(|fact| fact["scene"] == *scene).collect();
        if !of_scene.iter().any(|fact| fact["seconds"].is_u64()) {
            faults.push(format!("{scene} did not come to its end"));
        }
        for fact in of_scene {
            let found = judge(scene, &guest, fact);
            faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", place(fact))));
        }
    }
    faults
}

/// What is promised of the binary itself.
pub(crate) fn of_binary(architecture: &Architecture) -> Result<Option<String>, Failure> {
    let size = architecture.shim().and_then(|path| fs::metadata(path).or_fail("look at the shim's binary"))?.len();
    println!("{}: the binary has {size} bytes", architecture.name);
    let larger = architecture.name == "arm64" && size > ARM64_BINARY;
    Ok(larger.then(|| format!("the binary for {} has {size} bytes, promised are {ARM64_BINARY}", architecture.name)))
}

/// Where a fact was found.
pub(crate) fn place(fact: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let settings = match &fact["settings"] {
        Value::Null => String::new(),
        settings => format!(" {settings}"),
    };
    format!("{}, {}{settings}", text(&fact["scene"]), text(&fact["phase"]))
}

fn judge(scene: &str, guest: &Guest<'_>, fact: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(trouble) = fact["trouble"].as_str() {
        faults.push(trouble.to_owned());
    }
    if fact["tests"].is_string() && (fact["code"] != 0 || fact["passed"] == 0) {
        faults.push(format!("the tests {} ended with {}: {}", fact["tests"], fact["code"], fact["last"]));
    }
    if let Some(ends) = fact["ends"].as_object() {
        let right = |end: &str| end == "exit 0" || scene == "ladder" && end == format!("exit {REFUSED}");
        faults.extend(ends.iter().filter(|(end, _)| !right(end)).map(|(end, count)| format!("{count} ended by {end}")));
    }
    let count = &fact["count"];
    match fact["outcome"].as_str() {
        Some("served") => faults.extend(held(scene, guest, fact).into_iter().map(|fault| format!("{count}: {fault}"))),
        Some("silent") => faults.push(format!("{count} got no certificate; {}", fact["told"])),
        Some(end) => {
            if let Some(fault) = not_promised(scene, fact, end) {
                faults.push(format!("{count}: {fault}; {}", fact["last"][0]));
            }
        }
        None => {}
    }
    if fact["settings"]["code"] != Value::Null && fact["settings"]["code"] != 0 {
        faults.push(format!("`sds-shim renew` ended with {}", fact["settings"]["code"]));
    }
    faults
}

/// A process may end only where more protection is required than there is, and says so.
fn not_promised(scene: &str, fact: &Value, end: &str) -> Option<String> {
    let required = fact["settings"]["required"].as_str().unwrap_or("locked");
    let told = fact["told"].to_string();
    if scene != "ladder" || fact["code"] != REFUSED || required == "none" {
        return Some(format!("ended by {end}"));
    }
    let reason = format!("SDS_SHIM_REQUIRE_LOCKED={required}");
    (!told.contains(&reason)).then(|| format!("ended by {end} without the reason {reason}"))
}

/// What a guest said of its kernel: whom it counts secret memory for, and the bytes of its pages.
struct Guest<'a> {
    counting: &'a str,
    page: u64,
}

/// The level held and what is told of it.
fn held(scene: &str, &Guest { counting, page }: &Guest<'_>, fact: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let level = fact["level"].as_str().unwrap_or_default();
    let missing = fact["missing"].to_string();
    let pages = fact["pages"].as_u64();
    let most = if ["kinds", "files"].contains(&scene) { MOST } else { ECDSA };
    let most = most.div_ceil(page);
    match pages {
        Some(pages) if pages <= most => {}
        pages => faults.push(format!("{pages:?} pages of secret memory, promised are {most} at the most")),
    }
    if level == "secret" && pages.unwrap_or(0) == 0 {
        faults.push("the level is secret without a page of secret memory".to_owned());
    }
    faults.extend(misreported(counting, pages.map(|pages| pages * page), &fact["memory"]));
    for (name, most) in [("VmPeak", MAPPED), ("VmRSS", RESIDENT)] {
        match fact[name].as_u64() {
            Some(kib) if kib <= most => {}
            kib => faults.push(format!("{name} is {kib:?} KiB, promised are {most} at the most")),
        }
    }
    if fact["polls"] == true {
        faults.push("it polls files that it could watch".to_owned());
    }
    let expected = expected(scene, counting, fact);
    if !expected.contains(&level) {
        faults.push(format!("the level is {level:?}, promised is {expected:?}; missing: {missing}"));
    }
    if level != "secret" && missing == "[]" {
        faults.push(format!("the level is {level:?}, and nothing is said to be missing"));
    }
    let eaten = fact["phase"].as_str().is_some_and(|phase| phase.ends_with("beside it"));
    if scene == "eater" && counting == "user" && eaten && !missing.contains("for all processes of a user together") {
        faults.push(format!("it is not told that this kernel counts for all processes of the user: {missing}"));
    }
    faults
}

/// What the status says of secret memory, where the kernel says otherwise.
fn misreported(counting: &str, held: Option<u64>, memory: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let told = memory["secret_bytes"].as_u64();
    if told != held {
        faults.push(format!("{told:?} bytes of secret memory are told, and {held:?} are resident"));
    }
    // Who has none may not have found out.
    let counted_for = memory["secret_counted_for"].as_str();
    if counted_for.is_some_and(|told| told != counting) || held > Some(0) && counted_for.is_none() {
        faults.push(format!("it is told that secret memory is counted for {counted_for:?}; it is for {counting}"));
    }
    faults
}

/// The levels that are right.
fn expected(scene: &str, counting: &str, fact: &Value) -> Vec<&'static str> {
    let best = if counting == "none" { "locked" } else { "secret" };
    let phase = fact["phase"].as_str().unwrap_or_default();
    match scene {
        "eater" if counting == "user" && phase.ends_with("beside it") => vec!["locked"],
        "ladder" => {
            let levels = ["none", "locked", "secret"];
            let required = fact["settings"]["required"].as_str().unwrap_or_default();
            let least = levels.iter().position(|level| *level == required).unwrap_or(0);
            match fact["settings"]["memlock"].as_str() {
                // Room for all of it.
                Some("8192" | "unlimited") => vec![best],
                _ => levels[least..].to_vec(),
            }
        }
        _ => vec![best],
    }
}
