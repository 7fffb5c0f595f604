use std::{fmt::Write as _, time::UNIX_EPOCH};

use serde_json::Value;

use crate::clock::{moment, words};

/// Characters of a serial number that are shown.
const SERIAL: usize = 16;
/// Characters of an issuer that are shown.
const ISSUER: usize = 40;

/// The status as people read it, at `now` (Unix seconds).
pub fn render(status: &Value, now: i64, colour: bool) -> String {
    let page = Page { now, colour };
    let mut out = String::new();
    let ready = match status["ready"].as_bool() {
        Some(true) => page.paint("32", "ready"),
        _ => format!("{}: {}", page.paint("31", "NOT READY"), text(&status["reason"])),
    };
    let version = text(&status["version"]);
    let _ =
        writeln!(out, "sds-shim {version}, process {}, up {}: {ready}", status["pid"], page.age(&status["started"]));
    let _ = writeln!(out, "source   {}", text(&status["source"]));
    if let Some(crash) = status["last_crash"].as_str() {
        let _ = writeln!(out, "crash    {}", page.paint("31", crash));
    }
    for workload in list(&status["workloads"]) {
        out.push('\n');
        page.workload(&mut out, workload);
    }
    further(&mut out, &status["workload_count"], list(&status["workloads"]).len(), "workloads");
    out.push('\n');
    for ca in list(&status["ca"]) {
        page.ca(&mut out, ca);
    }
    if let Some(trouble) = status["admin"]["trouble"].as_str() {
        let _ = writeln!(out, "admin    {}", page.paint("31", trouble));
    }
    if let Some(trouble) = status["on_change"]["trouble"].as_str() {
        let _ = writeln!(out, "change   {}", page.paint("31", trouble));
    }
    if let Some(trouble) = status["output"]["trouble"].as_str() {
        let _ = writeln!(out, "output   {}", page.paint("31", trouble));
    }
    page.sds(&mut out, &status["sds"]);
    if !status["workload_api"].is_null() {
        page.applications(&mut out, &status["workload_api"]);
    }
    let memory = &status["memory"];
    let _ = writeln!(out, "\nmemory   {}", text(&memory["summary"]));
    for missing in list(&memory["missing"]) {
        let _ = writeln!(out, "missing  {}", page.paint("33", text(missing)));
    }
    if let Some(sandbox) = status["sandbox"].as_str() {
        let _ = writeln!(out, "sandbox  {sandbox}");
    }
    out
}

struct Page {
    now: i64,
    colour: bool,
}

impl Page {
    fn workload(&self, out: &mut String, workload: &Value) {
        let _ = writeln!(out, "{}", self.paint("1", text(&workload["identity"])));
        if let Some(wanted) = workload["wanted_identity"].as_str() {
            let _ = writeln!(out, "wanted   {}", self.paint("33", &format!("{wanted}, not issued yet")));
        }
        let next = match (workload["asking"] == true, workload["trouble"].is_null()) {
            (true, _) => "in progress".to_owned(),
            (false, true) if workload["next_attempt"].is_null() => "handled by its source".to_owned(),
            (false, true) => format!("renews {}", self.when(&workload["next_attempt"])),
            (false, false) => format!("retrying {}", self.when(&workload["next_attempt"])),
        };
        let _ = writeln!(out, "renewal  {next}; last success {}", self.when(&workload["last_success"]));
        if !workload["token_not_after"].is_null() {
            let _ = writeln!(out, "token    the last one used expires {}", self.when(&workload["token_not_after"]));
        }
        if let Some(trouble) = workload["trouble"].as_object() {
            let reached = match (trouble.get("reached").and_then(Value::as_bool), text(&trouble["reason"])) {
                (Some(true), _) => "; backing off until then",
                (Some(false), "connect" | "resolve") => "; retries cost the CA nothing",
                _ => "",
            };
            let trouble = format!(
                "{} ({}, since {}{reached})",
                text(&trouble["text"]),
                text(&trouble["reason"]),
                self.age(&trouble["since"])
            );
            let _ = writeln!(out, "trouble  {}", self.paint("31", &trouble));
        }
        self.revocation(out, &workload["revocation"]);
        for flaw in list(&workload["flaws"]) {
            let _ = writeln!(out, "flaw     {}", self.paint("31", text(&flaw["text"])));
        }
        let mut rows = vec![["RESOURCE", "KIND", "SERIAL", "ISSUER", "BEGAN", "ENDS"].map(str::to_owned)];
        for secret in list(&workload["resources"]) {
            for certificate in list(&secret["certificates"]) {
                rows.push([
                    text(&secret["name"]).to_owned(),
                    text(&certificate["kind"]).to_owned(),
                    // Of a token, whom it is for.
                    cut(
                        text(certificate.get("serial").filter(|it| it.is_string()).unwrap_or(&certificate["audience"])),
                        SERIAL,
                    ),
                    cut(issuer(text(&certificate["issuer"])), ISSUER),
                    self.when(&certificate["not_before"]),
                    self.when(&certificate["not_after"]),
                ]);
            }
        }
        table(out, &rows);
        for secret in list(&workload["resources"]) {
            let what = format!("certificates of {}", text(&secret["name"]));
            further(out, &secret["certificate_count"], list(&secret["certificates"]).len(), &what);
        }
    }

    fn revocation(&self, out: &mut String, revocation: &Value) {
        if revocation.is_null() {
            return;
        }
        let checks = if revocation["whole_chain"] == true { "whole chains" } else { "leaf certificates alone" };
        let served = match revocation["served"].as_u64() {
            Some(count) if count > 0 => {
                format!("{} served, Envoy checks {checks}", many(&revocation["served"], "list"))
            }
            _ => "no list is served".to_owned(),
        };
        match revocation["trouble"]["text"].as_str() {
            Some(trouble) => {
                let _ = writeln!(out, "CRL      {}", self.paint("31", &format!("{served}: {trouble}")));
            }
            None => _ = writeln!(out, "CRL      {served}"),
        }
    }

    fn ca(&self, out: &mut String, ca: &Value) {
        let state = match ca["up"].as_bool() {
            Some(true) => self.paint("32", "answers"),
            Some(false) => self.paint("31", "fails"),
            None => "not called yet".to_owned(),
        };
        let _ = write!(
            out,
            "CA       {} {state}; {}, {} failed",
            text(&ca["address"]),
            many(&ca["calls"], "call"),
            ca["failed"]
        );
        if let Some(unreached @ 1..) = ca["unreached"].as_u64() {
            let _ = write!(out, " ({unreached} without a connection)");
        }
        if let Some(mean) = ca["mean_seconds"].as_f64() {
            let _ = write!(out, ", {:.1} ms each", mean * 1e3);
        }
        if let Some(version) = ca["tls_version"].as_str() {
            let _ = write!(out, "; TLS {}, {}", version.trim_start_matches("TLSv"), text(&ca["tls_group"]));
        }
        out.push('\n');
        if !ca["last_error"].is_null() {
            let _ =
                writeln!(out, "         last failure {}: {}", self.when(&ca["last_failure"]), text(&ca["last_error"]));
        }
    }

    fn sds(&self, out: &mut String, sds: &Value) {
        for (name, counts) in sds["resources"].as_object().into_iter().flatten() {
            let _ = writeln!(
                out,
                "SDS      {name}: sent {}, {} ACK, {} NACK",
                many(&counts["pushes"], "time"),
                counts["acks"],
                counts["nacks"]
            );
            if !counts["last_nack"].is_null() {
                let nack = &counts["last_nack"];
                let _ = writeln!(out, "         last NACK {}: {}", self.when(&nack["at"]), text(&nack["text"]));
            }
        }
        for (uid, refused) in sds["refused_uids"].as_object().into_iter().flatten() {
            let _ =
                writeln!(out, "SDS      refused {} of uid {uid} (SDS_SHIM_ALLOW_UIDS)", many(refused, "connection"));
        }
        self.streams(out, sds, "streams");
    }

    fn applications(&self, out: &mut String, api: &Value) {
        for (uid, refused) in api["refused_uids"].as_object().into_iter().flatten() {
            let refused = many(refused, "connection");
            let _ = writeln!(out, "API      refused {refused} of uid {uid} (SDS_SHIM_WORKLOAD_API_UIDS)");
        }
        self.streams(out, api, "streams of the Workload API");
    }

    fn streams(&self, out: &mut String, on: &Value, what: &str) {
        let streams = list(&on["streams"]);
        let mut rows = vec![["STREAM", "PID", "UID", "OPEN", "RESOURCE", "STATE"].map(str::to_owned)];
        for stream in streams {
            for resource in list(&stream["resources"]) {
                rows.push([
                    text(&stream["call"]).to_owned(),
                    stream["pid"].as_i64().map_or("?".to_owned(), |pid| pid.to_string()),
                    stream["uid"].to_string(),
                    self.age(&stream["since"]),
                    text(&resource["name"]).to_owned(),
                    format!("{} {}", text(&resource["state"]), self.when(&resource["at"])),
                ]);
            }
        }
        out.push('\n');
        if rows.len() == 1 {
            let _ = writeln!(out, "no {what}");
        } else {
            table(out, &rows);
        }
        further(out, &on["stream_count"], streams.len(), what);
    }

    /// A moment in relation to now: `in 3 h 12 min`, `5 min ago`.
    fn when(&self, time: &Value) -> String {
        seconds(time).map_or("never".to_owned(), |at| moment(at, self.now))
    }

    fn age(&self, time: &Value) -> String {
        seconds(time).map_or("?".to_owned(), |at| words((self.now - at).max(0)))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn table(out: &mut String, rows: &[[String; 6]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
}

/// Tells how many there are beyond those that are shown.
fn further(out: &mut String, all: &Value, shown: usize, what: &str) {
    let all = all.as_u64().unwrap_or(0);
    if all > shown as u64 {
        let _ = writeln!(out, "and {} more {what}", all - shown as u64);
    }
}

fn many(count: &Value, what: &str) -> String {
    format!("{count} {what}{}", if *count == 1 { "" } else { "s" })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// What an issuer is known by: its common name, else its organisation, else all of it.
fn issuer(name: &str) -> &str {
    let part = |key| name.split(", ").find(|part| part.starts_with(key));
    part("CN=").or_else(|| part("O=")).unwrap_or(name)
}

fn seconds(time: &Value) -> Option<i64> {
    let time = humantime::parse_rfc3339(time.as_str()?).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_shown_by_what_it_is_known_by() {
        for (name, expected) in [
            ("O=Istio, CN=root, OU=x", "CN=root"),
            ("C=DE, O=cluster.local, L=here", "O=cluster.local"),
            ("C=DE, L=here", "C=DE, L=here"),
        ] {
            assert_eq!(issuer(name), expected);
        }
    }

    #[test]
    fn troubles_are_shown() {
        let status = serde_json::json!({
            "version": "1", "pid": 7, "started": "1970-01-01T00:00:00Z", "ready": false, "reason": "why", "source": "s",
            "workloads": [{"identity": "i", "asking": true, "resources": [], "trouble": {
                "since": "1970-01-01T00:01:00Z", "reason": "token", "text": "no token",
            }}],
            "ca": [{"address": "a:1", "up": false, "calls": 2, "failed": 1, "mean_seconds": 0.01,
                "last_failure": "1970-01-01T00:01:30Z", "last_error": "gone",
                "tls_version": "TLSv1.3", "tls_group": "X25519MLKEM768"}],
            "sds": {
                "resources": {"default": {"pushes": 2, "acks": 1, "nacks": 1,
                    "last_nack": {"at": "1970-01-01T00:01:40Z", "text": "not to my taste"}}},
                "refused_uids": {"2001": 1},
                "streams": [{"call": "DeltaSecrets", "pid": null, "uid": 7, "since": "1970-01-01T00:00:30Z",
                    "resources": [{"name": "default", "state": "refused", "at": "1970-01-01T00:01:40Z"}]}],
            },
            "workload_api": {
                "refused_uids": {"2002": 2},
                "streams": [{"call": "FetchX509SVID", "pid": 8, "uid": 9, "since": "1970-01-01T00:00:30Z",
                    "resources": [{"name": "default", "state": "sent", "at": "1970-01-01T00:01:40Z"}]}],
            },
            "memory": {"summary": "m", "missing": ["a larger limit"]},
            "sandbox": "no Landlock",
        });
        let expected = "\
sds-shim 1, process 7, up 1 min 40 s: NOT READY: why
source   s

i
renewal  in progress; last success never
trouble  no token (token, since 40 s)
RESOURCE  KIND  SERIAL  ISSUER  BEGAN  ENDS

CA       a:1 fails; 2 calls, 1 failed, 10.0 ms each; TLS 1.3, X25519MLKEM768
         last failure 10 s ago: gone
SDS      default: sent 2 times, 1 ACK, 1 NACK
         last NACK 0 s ago: not to my taste
SDS      refused 1 connection of uid 2001 (SDS_SHIM_ALLOW_UIDS)

STREAM        PID  UID  OPEN        RESOURCE  STATE
DeltaSecrets  ?    7    1 min 10 s  default   refused 0 s ago
API      refused 2 connections of uid 2002 (SDS_SHIM_WORKLOAD_API_UIDS)

STREAM         PID  UID  OPEN        RESOURCE  STATE
FetchX509SVID  8    9    1 min 10 s  default   sent 0 s ago

memory   m
missing  a larger limit
sandbox  no Landlock
";
        assert_eq!(render(&status, 100, false), expected);
    }

    #[test]
    fn omitted_entries_are_counted() {
        let status = serde_json::json!({"workload_count": 17, "workloads": [{
            "resources": [{"name": "ROOTCA", "certificates": [{}, {}], "certificate_count": 140}],
        }]});
        let told = render(&status, 0, false);
        assert!(told.contains("and 138 more certificates of ROOTCA\n"), "{told}");
        assert!(told.contains("and 16 more workloads\n") && !told.contains("more streams"), "{told}");
    }

    #[test]
    fn only_a_terminal_gets_colour() {
        let status = serde_json::json!({"ready": false, "reason": "no"});
        assert!(!render(&status, 0, false).contains('\x1b'));
        assert!(render(&status, 0, true).contains("\x1b[31mNOT READY\x1b[0m: no"));
    }
}
