//! What is true of the sources themselves.

mod architecture;
mod dependencies;
mod packaging;
