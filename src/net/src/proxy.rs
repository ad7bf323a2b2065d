//! The unprivileged proxy that serves published ports on `[::1]`.
