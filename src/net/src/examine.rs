//! What stands in the way of links on this host: rows for `doctor`.
