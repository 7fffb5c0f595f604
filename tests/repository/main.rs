//! What is true of the sources themselves, and that the documents say what the binary, the Makefile and each other say.

mod architecture;
mod command_files;
mod dependencies;
mod document;
mod environment;
mod links;
mod manual;
mod packaging;
mod readme;
