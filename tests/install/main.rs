//! What is installed: by the scripts for building and testing, by the unit for virtual machines, by a plain build, and by
//! Debian packages with a real systemd as the first process, in minimal systems of Debian 12 and 13. Where the machine does
//! not let us start containers these last ones cannot be tested, which is said past the test harness.

mod distribution;
mod machine;
mod packages;
mod scripts;
mod systemd;
mod unit;

use testkit::container::possible;
