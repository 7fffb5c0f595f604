//! What peers wrote, on its way into the log: nothing that could be a key comes through, and it is one short line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sds_shim::bounded::foreign_text;

/// Longest run of base64 that may be told.
const RUN: usize = 40;
/// Longest step of a URL's path that may be told, if it has no capital letters.
const LABEL: usize = 63;
/// The short last line of a key's base64.
const SECRET: &str = "c2VjcmV0c2VjcmV0";

fuzz_target!(|data: &[u8]| {
    let Some((limit, text)) = data.split_first() else { return };
    let limit = 2 * usize::from(*limit);
    let text = String::from_utf8_lossy(text);
    check(&foreign_text(&text, limit), limit);

    // A key in the middle of it, after whatever the fuzzer wrote there.
    let (before, after) = text.split_once('|').unwrap_or((&text, ""));
    let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n{SECRET}\n-----END PRIVATE KEY-----", "MIGHAgEA".repeat(8));
    let told = foreign_text(&format!("{before}{key}{after}"), limit);
    check(&told, limit);
    assert!(!told.contains(SECRET) || before.contains(SECRET) || after.contains(SECRET), "a key is told: {told:?}");
});

fn check(told: &str, limit: usize) {
    assert!(told.chars().count() <= limit + 1, "longer than {limit}: {told:?}");
    assert!(!told.contains(char::is_control), "it is not one line: {told:?}");
    assert!(!told.contains("-----BEGIN"), "a PEM block is told: {told:?}");
    let mut rest = told;
    while let Some((text, url)) = rest.split_once("://") {
        runs(text, told);
        let end = url.find(|c: char| c.is_whitespace() || "\"'<>,;(){}[]".contains(c)).unwrap_or(url.len());
        for run in url[..end].split(|c: char| !step(c)) {
            let longest = if run.contains(|c: char| c.is_ascii_uppercase()) { RUN } else { LABEL };
            assert!(run.len() <= longest, "base64 is told: {told:?}");
        }
        rest = &url[end..];
    }
    runs(rest, told);
}

/// Outside of URLs a slash divides nothing.
fn runs(text: &str, told: &str) {
    for run in text.split(|c: char| c != '/' && !step(c)) {
        assert!(run.len() <= RUN, "base64 is told: {told:?}");
    }
}

fn step(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+=_-".contains(c)
}
