//! What people and machines see and use: commands, variables, logs, metrics, probes.

mod admin_port;
mod admin_tls;
mod environment;
mod environment_effects;
mod exec;
mod exec_isolation;
mod kubectl_plugin;
mod log;
mod metrics;
mod probes;
mod prometheus;
mod queries;
mod termination;
