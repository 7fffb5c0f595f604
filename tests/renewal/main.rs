//! When certificates are renewed, and with which token.

mod frozen_volume;
mod on_time;
mod order;
mod outage;
mod request_token;
mod suspend;
mod token;
