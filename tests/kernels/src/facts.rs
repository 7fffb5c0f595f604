//! Facts on their way out: one line of JSON each on the console, behind a word that nothing else begins with.

use std::io::Write as _;

use serde_json::{Value, json};

/// Writes one. The console may fail no scene.
pub(crate) fn tell(fact: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "fact: {fact}").and_then(|()| out.flush());
}

/// Something that went wrong for the guest itself, not for a shim: it fails the run.
pub(crate) fn trouble(scene: &str, what: &str) {
    tell(&json!({ "scene": scene, "trouble": what }));
}
