//! Kernel settings that links need, with the old values remembered.
