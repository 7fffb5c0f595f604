//! The SPIFFE Workload API on a socket of its own.

mod access;
mod clients;
mod content;
mod crowds;
mod helper;
mod refusals;
mod scene;
mod upkeep;
