use std::sync::Arc;

use locked::Counting;
use serde_json::{Value, json};

use crate::{
    clock::rfc3339,
    identity::CertificateFacts,
    memory,
    status::{EndpointFacts, PeersView, RenewalFacts, RevocationFacts, Status, Workload},
    store::{Kind, Secret},
};

/// What is shown one by one, of streams, of workloads, and of certificates over all secrets (but two of each): the
/// document must find room in the arena.
const STREAMS: usize = 32;
const WORKLOADS: usize = 16;
const CERTIFICATES: usize = 64;

/// All that may be told, as one document. Times are RFC 3339.
pub(super) fn document(status: &Status, now: i64) -> Value {
    let (readiness, renewals, workloads) = (status.readiness(now), status.renewals(), status.workloads());
    let shown = certificates_shown(&workloads);
    let failed: Value = crate::status::Reason::ALL
        .iter()
        .filter(|reason| renewals.failed[**reason as usize] > 0)
        .map(|reason| (reason.label().to_owned(), renewals.failed[*reason as usize].into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "now": rfc3339(now),
        "started": rfc3339(status.started),
        "ready": readiness.is_ok(),
        "reason": readiness.err().map(|reason| reason.to_string()),
        "source": status.source(),
        "last_crash": locked::last_crash().map(|crash| crash.to_string()),
        "workloads": workloads.iter().take(WORKLOADS).map(|one| workload(one, shown)).collect::<Vec<_>>(),
        "workload_count": workloads.len(),
        "renewals": { "issued": renewals.issued, "failed": failed },
        "ca": status.endpoints().iter().map(|one| endpoint(&one.address, &one.facts())).collect::<Vec<_>>(),
        "on_change": status.on_change().map(|facts| json!({
            "last": facts.last.map(rfc3339), "done": facts.done, "failed": facts.failed, "trouble": facts.trouble,
        })),
        "output": status.output().map(|output| json!({
            "written": output.last.map(rfc3339), "failed": output.failed, "trouble": output.trouble,
        })),
        "admin": status.admin().map(|trouble| json!({ "trouble": trouble })),
        "sds": peers(&status.peers.view()),
        "workload_api": status.applications.as_ref().map(|peers_of| peers(&peers_of.view())),
        "memory": memory_facts(),
        "sandbox": status.sandbox(),
    })
}

/// How many certificates of each secret are shown, those of an operating system among them, which are hundreds.
pub(super) fn certificates_shown(workloads: &[Arc<Workload>]) -> usize {
    let secrets = workloads.iter().map(|workload| workload.secrets().len()).sum::<usize>();
    (CERTIFICATES / secrets.max(1)).max(2)
}

fn workload(workload: &Workload, shown: usize) -> Value {
    let RenewalFacts {
        identity,
        wanted,
        asking,
        next_attempt,
        last_attempt,
        last_success,
        token_not_after,
        looks,
        confirmed,
        trouble,
        revocation,
        flaws,
    } = workload.renewal();
    let secrets = workload.secrets();
    json!({
        "identity": identity,
        "wanted_identity": wanted,
        "resources": secrets.iter().map(|(name, held)| secret(name, held, shown)).collect::<Vec<_>>(),
        "asking": asking,
        "next_attempt": next_attempt.map(rfc3339),
        "last_attempt": last_attempt.map(rfc3339),
        "last_success": last_success.map(rfc3339),
        "token_not_after": token_not_after.map(rfc3339),
        "files_read": (looks > 0).then_some(looks),
        "confirmed": (confirmed > 0).then_some(confirmed),
        "trouble": trouble.map(|trouble| json!({
            "since": rfc3339(trouble.since), "reason": trouble.reason.label(), "text": trouble.text,
            "reached": trouble.reached,
        })),
        "revocation": lists(&revocation),
        "flaws": flaws.iter().map(|(reason, text)| json!({ "reason": reason, "text": text })).collect::<Vec<_>>(),
    })
}

/// Nothing where nobody wants any.
fn lists(facts: &RevocationFacts) -> Option<Value> {
    let (reason, text) = facts.trouble.as_ref().map(|(reason, text)| (*reason, text)).unzip();
    (*facts != RevocationFacts::default()).then(|| {
        json!({
            "served": facts.served,
            "whole_chain": facts.whole_chain,
            "missed": facts.is_missed,
            "trouble": text.map(|text| json!({ "reason": reason, "text": text })),
        })
    })
}

fn secret(name: &str, secret: &Secret, shown: usize) -> Value {
    let facts = secret.facts();
    let shown = facts.iter().take(shown).enumerate();
    json!({
        "name": name,
        "version": secret.version(),
        "certificates": shown.map(|(at, facts)| certificate(kind(secret, at), facts)).collect::<Vec<_>>(),
        "certificate_count": facts.len(),
    })
}

/// The kind of a token.
const TOKEN: &str = "token";

/// What a certificate is for in a secret, by its place.
pub(super) fn kind(secret: &Secret, at: usize) -> &'static str {
    match (secret.kind(), at) {
        _ if secret.facts().get(at).is_some_and(|facts| facts.is_crl) => "crl",
        (Kind::Anchors, _) => "root",
        (Kind::Certificate, 0) => "leaf",
        (Kind::Certificate, _) => "intermediate",
        (Kind::Token, _) => TOKEN,
    }
}

fn certificate(kind: &str, facts: &CertificateFacts) -> Value {
    json!({
        "kind": kind,
        "serial": (kind != TOKEN).then_some(&facts.serial),
        "subject": (kind != TOKEN).then_some(&facts.subject),
        "audience": (kind == TOKEN).then_some(&facts.subject),
        "issuer": facts.issuer,
        "not_before": rfc3339(facts.not_before),
        "not_after": rfc3339(facts.not_after),
        "sha256": facts.fingerprint(),
    })
}

fn endpoint(address: &str, facts: &EndpointFacts) -> Value {
    let (count, mean) = (facts.latencies.count(), facts.latencies.sum / facts.latencies.count().max(1) as f64);
    json!({
        "address": address,
        "up": facts.is_up(),
        "calls": count,
        "failed": facts.failed,
        "unreached": facts.unreached,
        "mean_seconds": (count > 0).then_some((mean * 1e4).round() / 1e4),
        "last_success": facts.last_success.map(rfc3339),
        "last_failure": facts.last_failure.as_ref().map(|(at, _)| rfc3339(*at)),
        "last_error": facts.last_failure.as_ref().map(|(_, error)| error),
        "tls_version": facts.tls.map(|(version, _)| version),
        "tls_group": facts.tls.map(|(_, group)| group),
    })
}

fn peers(view: &PeersView) -> Value {
    let streams = view.streams.values().take(STREAMS).map(|stream| {
        let resources = stream
            .resources
            .iter()
            .map(|(name, state, at)| json!({ "name": name, "state": state.label(), "at": rfc3339(*at) }));
        json!({
            "pid": stream.peer.pid,
            "uid": stream.peer.uid,
            "call": stream.call,
            "since": rfc3339(stream.since),
            "resources": resources.collect::<Vec<_>>(),
        })
    });
    let resources = view.resources.iter().map(|(name, counts)| {
        let counts = json!({
            "pushes": counts.pushes,
            "acks": counts.acks,
            "nacks": counts.nacks,
            "last_nack": counts.last_nack.as_ref().map(|(at, text)| json!({ "at": rfc3339(*at), "text": text })),
        });
        (name.clone(), counts)
    });
    json!({
        "connections": view.connections,
        "stream_count": view.streams.len(),
        "streams": streams.collect::<Vec<_>>(),
        "resources": resources.collect::<serde_json::Map<_, _>>(),
        "refused_uids": view.refused,
    })
}

fn memory_facts() -> Value {
    let report = locked::report();
    json!({
        "level": report.level().to_string(),
        "summary": memory::describe(&report),
        "missing": report.missing,
        "locked_bytes": report.locked,
        "mapped_bytes": report.mapped,
        "limit_bytes": report.limit,
        "secret_bytes": report.secret.charged,
        "secret_used_bytes": report.secret.used,
        "secret_peak_bytes": report.secret.peak,
        "secret_counted_for": report.counting.map(|counting| match counting {
            Counting::Process => "process",
            Counting::User => "user",
        }),
        "keys_outside_of_secret_memory_bytes": report.secret.spilled,
        "arena_bytes": report.arena_mapped,
        "arena_used_bytes": report.usage.used,
        "arena_peak_bytes": report.usage.peak,
    })
}
