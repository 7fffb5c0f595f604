//! The chart on a real API server, and on a real node of it: `make test-kubernetes`.

mod chart;
mod envoy;
mod injection;
mod istio;
mod node;
mod stage;
mod status;
mod tokens;
mod values;
