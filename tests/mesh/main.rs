//! The shim in a mesh: the demo, other control planes, migration.

mod control_plane;
mod demo;
mod migration;
mod pilot_agent;
