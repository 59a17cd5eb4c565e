//! The command line: arguments, progress, reports, exit codes. The only room that prints.

/// Runs the program on the process's arguments.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
