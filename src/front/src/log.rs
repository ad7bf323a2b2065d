//! Where a front's log goes.

use std::{io, panic};

use cgrant_wire::boot::LogTarget;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Environment variable with the lowest level that is logged: `error`, `warn`, `info` (the default), `debug`, `trace`.
const LEVEL_VARIABLE: &str = "CGRANT_LOG";

/// Starts logging. Without a journal it goes to standard error.
pub fn start(target: LogTarget) {
    let level = std::env::var(LEVEL_VARIABLE)
        .ok()
        .and_then(|level| level.parse::<LevelFilter>().ok())
        .unwrap_or(LevelFilter::INFO);
    let journal = match target {
        // CGRANT_ACCOUNT, CGRANT_RULE and so on, to be asked for by name.
        LogTarget::Journal => {
            tracing_journald::layer().ok().map(|layer| layer.with_field_prefix(Some("CGRANT".to_owned())))
        }
        LogTarget::Terminal => None,
    };
    let layer = match journal {
        Some(journal) => journal.with_syslog_identifier("cgrant-front".to_owned()).boxed(),
        None => tracing_subscriber::fmt::layer().with_ansi(false).with_writer(io::stderr).boxed(),
    };
    // Somebody else's subscriber would be there before ours only in a test, and does as well.
    let _ = tracing_subscriber::registry().with(layer.with_filter(level)).try_init();
    panic::set_hook(Box::new(|panic| tracing::error!(%panic, "fault in the front")));
}
