//! The socket, its protocol, and what is served on it.

mod clients;
mod delta;
mod exhaustion;
mod fetch;
mod file_names;
mod file_places;
mod file_rights;
mod on_demand;
mod own_names;
mod resource_pressure;
mod socket;
mod socket_directory;
mod socket_users;
mod stream;
mod tokens;
