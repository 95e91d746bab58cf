//! The contracts of Weft: the messages, clients and servers made from every file under `proto/`.
//!
//! `weft.options.v1` has the options by which a contract configures the mesh. The other `weft.*` packages are the APIs
//! between the parts of the mesh. `shop.*` is the demo. [`FILE_DESCRIPTOR_SET`] has all of them with their custom
//! options intact. [`sources`] has the text of the files that users' contracts may import.

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
    /// The options of contracts, and the APIs between the parts of the mesh.
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
