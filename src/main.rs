//! The `to-gguf` program: the command line in, an exit status out.

fn main() -> std::process::ExitCode {
    to_gguf::cli::main()
}
