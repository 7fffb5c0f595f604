//! The host's part: guests, what is expected of them, and the table of what they said.

pub(crate) mod boot;
pub(crate) mod faults;
pub(crate) mod page;
pub(crate) mod table;
