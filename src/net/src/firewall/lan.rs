//! The bridge table: who reaches whom on the data link layer.
//!
//! Needs neither connection tracking nor the bridge's name, which not every kernel has for bridges. Bridges and ports that are not
//! the broker's are let alone.

use super::{
    mark::{BRIDGED, MASK, Mark, PUBLISHED},
    schema::{ACCEPT, Command, DROP, Expression, Family, Hook, Mangle, Statement, Writer, is, isnt, meta},
};

/// Bits of the mark that are ours.
pub fn our_mark() -> Expression {
    Expression::And(Box::new([meta("mark"), Expression::from(u64::from(MASK))]))
}

/// Changes our bits of the mark, and only those.
pub fn set_mark(mark: Mark) -> Statement {
    let others = Expression::And(Box::new([meta("mark"), Expression::from(u64::from(!MASK))]));
    let value = Expression::Or(Box::new([others, Expression::from(u64::from(mark.0))]));
    Statement::Mangle(Mangle { key: meta("mark"), value })
}

/// The chains.
pub fn chains(table: &str) -> Vec<Command> {
    let mut writer = Writer::new(Family::Bridge, table);
    let hook = |hook| Hook { kind: "filter", hook, prio: -200, policy: "accept", dev: None };
    writer.chain("forward", Some(hook("forward")));
    let from = |set: &str| is(meta("iif"), set);
    let to = |set: &str| is(meta("oif"), set);
    let walled = || isnt(our_mark(), 0);
    // With bridge-nf-call-* the inet table sees the packet next, and could not tell it from one that is routed.
    let bridged = || set_mark(BRIDGED);
    // With bridge-nf-call-iptables a connection to a port published on this bridge is bridged to its container, its
    // destination rewritten; the inet table said so with this mark. Ports are in hairpin mode for one that reaches itself that
    // way, and only for that: a container that got its own broadcasts back would find its addresses taken.
    writer.rule("published", [from("@links"), is(our_mark(), u64::from(PUBLISHED.0)), ACCEPT]);
    let itself = Expression::Concat(vec![meta("iif"), meta("oif")]);
    writer.rule("back to itself", [is(itself, "@itself"), DROP]);
    // Two containers of one account. The first test keeps out marks of another instance on a bridge that both use: its numbers
    // mean other accounts.
    let same = Expression::Concat(vec![our_mark(), meta("oif")]);
    writer.rule("same account", [from("@links"), is(same, "@same"), bridged(), ACCEPT]);
    writer.rule("both open", [from("@open"), to("@open"), walled(), bridged(), ACCEPT]);
    // Wants: another account's container.
    writer.rule("other accounts", [from("@links"), to("@links"), DROP]);
    writer.rule("to the name server", [from("@links"), to("@servers"), walled(), bridged(), ACCEPT]);
    writer.rule("from the name server", [from("@servers"), to("@links"), walled(), bridged(), ACCEPT]);
    // On a bridge of the administrator's, what else is on it is what the link is for.
    writer.rule("to the administrator's network", [from("@foreign"), walled(), bridged(), ACCEPT]);
    writer.rule("from the administrator's network", [to("@foreign"), ACCEPT]);
    // On an own bridge nothing else belongs.
    for (comment, side) in [
        ("from links", from("@links")),
        ("to links", to("@links")),
        ("from name servers", from("@servers")),
        ("to name servers", to("@servers")),
    ] {
        writer.rule(comment, [side, DROP]);
    }
    // Wants: the host, past a wall that is not there (see the head of this module's parent).
    writer.chain("input", Some(hook("input")));
    let unwalled = |set| -> [Statement; 3] { [from(set), is(our_mark(), 0), DROP] };
    writer.rule("links without a wall", unwalled("@links"));
    writer.rule("name servers without a wall", unwalled("@servers"));
    writer.finish()
}
