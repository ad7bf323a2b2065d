//! The helper's orders against real kernel objects, each test in network namespaces of its own.

fn main() {}
