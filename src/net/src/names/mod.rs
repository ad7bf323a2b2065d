//! Name servers: one dnsmasq a bridge, confined.
