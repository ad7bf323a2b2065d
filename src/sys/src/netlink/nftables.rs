//! One table of nftables, put in place as a whole: what a network namespace does with packets, where no `nft` is installed.
//!
//! Only what a bridge with address translation needs can be said. It is one transaction: the table is there with all its rules
//! or as it was before.
//!
//! Sources: `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`; what `nft --debug=netlink` says of the same rules.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};

use super::{
    NetlinkError, Result,
    attribute::concat,
    socket::{LARGEST, receive, verdict},
};

const ACTION: &str = "set the rules of nftables";

/// Bit of an attribute's number that says that there are attributes in it.
const NESTED: u16 = 0x8000;

/// `NFNL_SUBSYS_NFTABLES`, and what begins and ends a transaction.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

/// `NFPROTO_UNSPEC`, `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const NO_FAMILY: u8 = 0;
const BOTH_FAMILIES: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NFTA_TABLE_NAME`, and the table's name in what is about chains and rules.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_*`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4 | NESTED;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_*`.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4 | NESTED;
/// `NFTA_LIST_ELEM`, `NFTA_EXPR_*`.
const ELEMENT: u16 = 1 | NESTED;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2 | NESTED;
/// `NFTA_DATA_*`, `NFTA_VERDICT_CODE`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2 | NESTED;
const VERDICT_CODE: u16 = 1;

/// The register that all rules here use, and that of the verdict.
const REGISTER: [u8; 4] = 1_u32.to_be_bytes();
const VERDICT_REGISTER: [u8; 4] = 0_u32.to_be_bytes();

/// `NFT_META_*`.
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_CT_STATE`; its bits for packets that belong to no connection, begin one, or are not looked at.
const CT_STATE: u32 = 0;
const NOT_KNOWN: u32 = 1 | 8 | 64;

/// What of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It came in by the device of this index.
    From(u32),
    /// By another one, or it is of this namespace.
    NotFrom(u32),
    /// It goes out by the device of this index.
    To(u32),
    /// By another one.
    NotTo(u32),
    /// Its sender is in this network.
    Source(IpAddr, u8),
    /// It is of the network's family, and its sender is not in it.
    ForeignSource(IpAddr, u8),
    /// It belongs to no connection that is known.
    Unknown,
    /// Its protocol above IP is another one (`IPPROTO_*`).
    NotProtocol(u8),
}

/// What becomes of a packet that all matches of a rule are true of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Drop,
    /// It leaves with an address of the device that it goes out by; only in [`Hook::SourceNat`].
    Masquerade,
}

/// Where a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// For programs of this namespace.
    Input,
    /// On their way through it.
    Forward,
    /// On their way out of it, the first of each connection.
    SourceNat,
}

/// A rule.
pub type Rule = (Vec<Match>, Verdict);

/// A chain of rules; what none of them is about passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it sees packets.
    pub hook: Hook,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// Puts the table of this name, for both families, in the place of the one that is there, in the network namespace of this thread.
///
/// # Errors
/// [`NetlinkError`]: `EPERM` without `CAP_NET_ADMIN` there, `EOPNOTSUPP` or `ENOENT` for what the kernel was made without.
pub fn replace_table(name: &str, chains: &[Chain]) -> Result<()> {
    let socket_error = |source| NetlinkError::Socket { action: ACTION, source };
    let socket = open().map_err(socket_error)?;
    let batch = Batch::new(name, chains);
    let sent = socket.send(&batch.bytes, libc::MSG_DONTWAIT).map_err(socket_error)?;
    if sent != batch.bytes.len() {
        return Err(socket_error(io::ErrorKind::WriteZero.into()));
    }
    // The kernel has done, or refused, all of it by now; each part is answered.
    let mut buffer = vec![0; LARGEST];
    let mut answered = 0;
    while answered < batch.parts {
        let length = receive(&socket, &mut buffer).map_err(socket_error)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let malformed = || NetlinkError::Malformed { action: ACTION };
            let message = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?;
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if message.message_type() == NLMSG_ERROR {
                verdict(ACTION, message.flags(), message.payload(), 0)?;
                answered += 1;
            }
        }
    }
    Ok(())
}

fn open() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // Requests are not echoed in errors: an answer stays short.
    socket.set_cap_ack(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A transaction: messages one behind the other.
struct Batch {
    bytes: Vec<u8>,
    /// How many answers there will be.
    parts: usize,
}

impl Batch {
    fn new(name: &str, chains: &[Chain]) -> Self {
        let mut batch = Self { bytes: Vec::new(), parts: 0 };
        let table = concat(&[(TABLE, &text(name))]);
        batch.push(BATCH_BEGIN, 0, NO_FAMILY, SUBSYSTEM, &[]);
        // To delete what is not there is refused.
        batch.part(NEW_TABLE, NLM_F_CREATE, &table);
        batch.part(DELETE_TABLE, 0, &table);
        batch.part(NEW_TABLE, NLM_F_CREATE, &table);
        for chain in chains {
            batch.part(NEW_CHAIN, NLM_F_CREATE, &chain.attributes(name));
            for rule in &chain.rules {
                let attributes = concat(&[
                    (TABLE, &text(name)),
                    (RULE_CHAIN, &text(chain.name)),
                    (RULE_EXPRESSIONS, &expressions(rule)),
                ]);
                batch.part(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
            }
        }
        batch.push(BATCH_END, 0, NO_FAMILY, SUBSYSTEM, &[]);
        batch
    }

    fn part(&mut self, kind: u16, flags: u16, attributes: &[u8]) {
        self.parts += 1;
        self.push(SUBSYSTEM << 8 | kind, NLM_F_ACK | flags, BOTH_FAMILIES, 0, attributes);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

impl Chain {
    fn attributes(&self, table: &str) -> Vec<u8> {
        // NF_INET_*, and where others' chains expect theirs (NF_IP_PRI_FILTER, NF_IP_PRI_NAT_SRC).
        let (number, priority, kind): (u32, i32, &str) = match self.hook {
            Hook::Input => (1, 0, "filter"),
            Hook::Forward => (2, 0, "filter"),
            Hook::SourceNat => (4, 100, "nat"),
        };
        let hook = concat(&[(HOOK_NUMBER, &number.to_be_bytes()), (HOOK_PRIORITY, &priority.to_be_bytes())]);
        concat(&[
            (TABLE, &text(table)),
            (CHAIN_NAME, &text(self.name)),
            (CHAIN_HOOK, &hook),
            (CHAIN_TYPE, &text(kind)),
        ])
    }
}

/// A text and its NUL.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// One part of a rule.
fn expression(name: &str, data: &[(u16, &[u8])]) -> Vec<u8> {
    let data = concat(data);
    concat(&[(ELEMENT, &concat(&[(EXPRESSION_NAME, &text(name)), (EXPRESSION_DATA, &data)]))])
}

fn expressions((matches, verdict): &Rule) -> Vec<u8> {
    let mut all = Vec::new();
    for one in matches {
        match *one {
            Match::From(index) => all.extend(meta(META_IIF, true, &index.to_ne_bytes())),
            Match::NotFrom(index) => all.extend(meta(META_IIF, false, &index.to_ne_bytes())),
            Match::To(index) => all.extend(meta(META_OIF, true, &index.to_ne_bytes())),
            Match::NotTo(index) => all.extend(meta(META_OIF, false, &index.to_ne_bytes())),
            Match::Source(network, prefix) => all.extend(source(network, prefix, true)),
            Match::ForeignSource(network, prefix) => all.extend(source(network, prefix, false)),
            Match::NotProtocol(number) => all.extend(meta(META_L4PROTO, false, &[number])),
            Match::Unknown => {
                all.extend(expression("ct", &[(1, &REGISTER), (2, &CT_STATE.to_be_bytes())]));
                all.extend(masked(&NOT_KNOWN.to_ne_bytes()));
                all.extend(compared(false, &[0; 4]));
            }
        }
    }
    match verdict {
        Verdict::Drop => {
            let code = concat(&[(VERDICT_CODE, &0_u32.to_be_bytes())]);
            let data = concat(&[(DATA_VERDICT, &code)]);
            all.extend(expression("immediate", &[(1, &VERDICT_REGISTER), (2 | NESTED, &data)]));
        }
        Verdict::Masquerade => all.extend(expression("masq", &[])),
    }
    all
}

/// Is this of the packet so, or not so?
fn meta(key: u32, is: bool, value: &[u8]) -> Vec<u8> {
    let load = expression("meta", &[(1, &REGISTER), (2, &key.to_be_bytes())]);
    [load, compared(is, value)].concat()
}

/// Is the sender in the network, or not in it? Of the other family neither is true.
fn source(network: IpAddr, prefix: u8, is: bool) -> Vec<u8> {
    let (family, offset, address) = match network {
        IpAddr::V4(address) => (IPV4, 12_u32, address.octets().to_vec()),
        IpAddr::V6(address) => (IPV6, 8_u32, address.octets().to_vec()),
    };
    let mask: Vec<u8> = (0_u8..16).take(address.len()).map(|at| byte_of_mask(prefix, at)).collect();
    let network: Vec<u8> = address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
    let length = u32::from(if family == IPV4 { 4_u8 } else { 16 });
    let load = expression(
        "payload",
        &[
            (1, &REGISTER),
            // NFT_PAYLOAD_NETWORK_HEADER.
            (2, &1_u32.to_be_bytes()),
            (3, &offset.to_be_bytes()),
            (4, &length.to_be_bytes()),
        ],
    );
    [meta(META_NFPROTO, true, &[family]), load, masked(&mask), compared(is, &network)].concat()
}

fn byte_of_mask(prefix: u8, at: u8) -> u8 {
    let bits = prefix.saturating_sub(at.saturating_mul(8)).min(8);
    u8::try_from(0xff00_u16.checked_shr(bits.into()).unwrap_or(0) & 0xff).unwrap_or(0)
}

/// Leaves these bits of the register.
fn masked(mask: &[u8]) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap_or(0).to_be_bytes();
    let (mask, xor) = (concat(&[(DATA_VALUE, mask)]), concat(&[(DATA_VALUE, &vec![0; mask.len()])]));
    expression(
        "bitwise",
        &[(1, &REGISTER), (2, &REGISTER), (3, &length), (4 | NESTED, &mask), (5 | NESTED, &xor)],
    )
}

/// Is the register this, or not this?
fn compared(is: bool, value: &[u8]) -> Vec<u8> {
    let operation = u32::from(!is).to_be_bytes();
    expression("cmp", &[(1, &REGISTER), (2, &operation), (3 | NESTED, &concat(&[(DATA_VALUE, value)]))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_bits_as_the_prefix() {
        let mask = |prefix| [0, 1, 2, 3].map(|at| byte_of_mask(prefix, at));
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(1), [0x80, 0, 0, 0]);
        assert_eq!(mask(22), [0xff, 0xff, 0xfc, 0]);
        assert_eq!(mask(32), [0xff; 4]);
    }

    #[test]
    fn each_part_of_a_transaction_is_answered() {
        let rules = vec![(vec![Match::From(3), Match::Unknown], Verdict::Drop)];
        let batch = Batch::new("t", &[Chain { name: "c", hook: Hook::Input, rules }]);
        assert_eq!(batch.parts, 5);
        let mut rest = &batch.bytes[..];
        let mut count = 0;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).unwrap();
            let length = usize::try_from(message.length()).unwrap();
            assert_eq!(length % 4, 0);
            rest = &rest[length..];
            count += 1;
        }
        assert_eq!(count, batch.parts + 2);
    }
}
