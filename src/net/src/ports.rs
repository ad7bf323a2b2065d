//! Sockets that hold published ports.
