//! A client of the SDS socket that costs as little as can be: HTTP/2's frames written and read by hand, many
//! connections and streams on one thread, and the time of each answer.

mod connection;
mod crowd;
mod crowds;
mod wire;

pub(crate) use crowd::Crowd;
pub(crate) use crowds::{CLIENT, Crowds, client};
