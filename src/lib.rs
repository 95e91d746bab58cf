//! The contracts of Weft: the messages, clients and servers made from every file under `proto/`.
//!
//! `weft.options.v1` holds the options through which a contract configures the mesh; the other `weft.*` packages are
//! what the parts of the mesh say to each other; `shop.*` is the demo. [`FILE_DESCRIPTOR_SET`] keeps all of it with
//! its custom options intact. [`sources`] has the text of the files that users' contracts may import.

pub mod codec;
pub mod sources;

/// Every file under `proto/` with its imports: a serialized `google.protobuf.FileDescriptorSet`, custom options
/// included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

macro_rules! packages {
    ($($(#[$doc:meta])* $outer:ident { $($inner:ident => $package:literal,)* })*) => {$(
        $(#[$doc])*
        pub mod $outer {$(
            #[doc = concat!("`", $package, "`")]
            #[allow(missing_docs, unreachable_pub, clippy::all)]
            pub mod $inner {
                /// Version 1.
                pub mod v1 {
                    tonic::include_proto!($package);
                }
            }
        )*}
    )*};
}

packages! {
    /// What the parts of the mesh say to each other.
    weft {
        admin => "weft.admin.v1",
        discovery => "weft.discovery.v1",
        identity => "weft.identity.v1",
        options => "weft.options.v1",
        policy => "weft.policy.v1",
    }
    /// The demo shop.
    shop {
        auth => "shop.auth.v1",
        notifications => "shop.notifications.v1",
        orders => "shop.orders.v1",
        products => "shop.products.v1",
        users => "shop.users.v1",
    }
}
