use std::{fmt::Display, sync::Arc};

use super::{metrics, older_format, row::row, status};
use crate::{
    budget, clock,
    status::{Page, Pages, Status},
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// The documents of the admin endpoints.
pub struct AdminPages(Arc<Status>);

impl AdminPages {
    /// Shows this state.
    pub fn new(status: Arc<Status>) -> Self {
        Self(status)
    }
}

impl Pages for AdminPages {
    fn page(&self, path: &str, accept: Option<&str>) -> Page {
        let now = clock::now();
        match path {
            // Whoever answers this is alive: there is one thread.
            "/livez" => text(200, &"ok"),
            "/readyz" => {
                let (status, told) = match self.0.readiness(now) {
                    Ok(()) => {
                        let trouble = self.0.revocation_trouble();
                        (200, trouble.map_or("ok".to_owned(), |trouble| format!("ok\nrevocation lists: {trouble}")))
                    }
                    Err(reason) => (503, reason.to_string()),
                };
                // Kubelet's probes are somebody else's then; who asks over the SDS socket should know.
                text(status, &self.0.admin().map_or(told.clone(), |trouble| format!("{told}\n{trouble}")))
            }
            "/metrics" | "/status" | "/status/row" if !budget::has_room_for_document() => {
                text(503, &"not enough arena memory for this document now; raise SDS_SHIM_ARENA_KIB")
            }
            "/metrics" if older_format::is_wanted(accept) => {
                let body = older_format::of(&metrics::scrape(&self.0)).into();
                Page { status: 200, content_type: older_format::CONTENT_TYPE, body }
            }
            "/metrics" => {
                Page { status: 200, content_type: metrics::CONTENT_TYPE, body: metrics::scrape(&self.0).into() }
            }
            "/status" => {
                let body = status::document(&self.0, now).to_string() + "\n";
                Page { status: 200, content_type: JSON, body: body.into() }
            }
            "/status/row" => {
                let memory = locked::report();
                text(200, &row(&self.0, now, &memory.level().to_string(), &memory.missing))
            }
            "/" => text(200, &"/livez\n/readyz\n/metrics\n/status\n/status/row"),
            _ => text(404, &"not found; available: /livez, /readyz, /metrics, /status, /status/row"),
        }
    }
}

fn text(status: u16, body: &dyn Display) -> Page {
    Page { status, content_type: TEXT, body: format!("{body}\n").into() }
}
