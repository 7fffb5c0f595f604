//! The image, and what container runtimes make of it. Where the machine does not let us start containers nothing can be
//! tested, which is said past the test harness.

mod gvisor;
mod image;
mod restricted;
mod runtimes;
