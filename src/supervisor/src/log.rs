//! Where the log goes: to the journal if the service manager connected standard error to it, else to standard error.

use std::os::unix::fs::MetadataExt;

use cgrant_wire::boot::LogTarget;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Finds out where the log goes (sd-journal: `$JOURNAL_STREAM` names the device and inode of standard error).
pub fn target() -> LogTarget {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return LogTarget::Terminal };
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return LogTarget::Terminal };
    if stream == format!("{}:{}", metadata.dev(), metadata.ino()) {
        LogTarget::Journal
    } else {
        LogTarget::Terminal
    }
}

/// Starts logging. Without a journal that answers, the log goes to standard error.
pub fn start(target: LogTarget) {
    let journal = match target {
        // CGRANT_ACCOUNT, CGRANT_RULE and so on, to be asked for by name.
        LogTarget::Journal => {
            tracing_journald::layer().ok().map(|layer| layer.with_field_prefix(Some("CGRANT".to_owned())))
        }
        LogTarget::Terminal => None,
    };
    let terminal = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .boxed()
    });
    // A subscriber that is there already (in a test) is as good.
    let _ = tracing_subscriber::registry().with(LevelFilter::INFO).with(journal).with(terminal).try_init();
}
