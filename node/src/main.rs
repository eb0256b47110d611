//! The `cocoon` program; everything is in the library.

fn main() -> std::process::ExitCode {
    cocoon_node::main_with(cocoon_node::Instruments::default())
}
