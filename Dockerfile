# The images of Weft: `sidecar`, `control` (the program `weft`), `redirect` (`weft` with nftables), and `shop-NAME` for each
# service of the demo.
#
#   docker build --target sidecar --tag weft/sidecar:0.1.0 .
#
# Each has one static program and an empty /tmp: no shell, no libraries, nothing of a distribution. It runs as the user
# 65532, with a root file system that may be read-only. Only `redirect` has more: nft and its libraries, for root.
# docs/kubernetes.md says more.
#
# With programs that were built outside, the build stage and its base image are not needed. Put them into target/static:
#
#   docker build --build-arg BINARIES=outside --target sidecar --tag weft/sidecar:0.1.0 .

# Where the programs come from: the stage `build` or the stage `outside`.
ARG BINARIES=build
ARG RUST=1.95

FROM docker.io/library/rust:${RUST}-bookworm AS build
WORKDIR /weft
COPY . .
# Static with glibc, whose allocator is faster than musl's under load. The target is named so that only the programs are
# linked so, not what runs during the build. One build for each: features that `weft` enables in the sidecar must not get
# into the sidecar that is shipped alone.
ENV RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols --remap-path-prefix=/weft=."
RUN set -eu; \
    target=$(rustc -vV | sed -n 's/^host: //p'); \
    for package in weft-sidecar weft-cli \
        shop-auth shop-notifications shop-orders shop-products shop-users shop-web; do \
      case $package in weft-cli) features="--features kubernetes" ;; *) features= ;; esac; \
      cargo build --locked --profile dist --target "$target" --package "$package" --bins $features; \
    done; \
    mkdir /programs; \
    cd "target/$target/dist"; \
    cp weft-sidecar weft shop-auth shop-notifications shop-orders shop-products shop-users shop-web /programs/

FROM scratch AS outside
COPY target/static/ /programs/

FROM ${BINARIES} AS binaries

# What all images have in common. WORKDIR is what makes a folder without a shell.
FROM scratch AS empty
ARG VERSION=0.1.0
LABEL org.opencontainers.image.vendor="Weft" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
WORKDIR /tmp
WORKDIR /
USER 65532:65532

FROM empty AS sidecar
LABEL org.opencontainers.image.title="weft-sidecar" \
      org.opencontainers.image.description="The sidecar of Weft, the proxy beside each service"
COPY --from=binaries /programs/weft-sidecar /weft-sidecar
ENTRYPOINT ["/weft-sidecar"]

FROM empty AS control
LABEL org.opencontainers.image.title="weft-control" \
      org.opencontainers.image.description="The control plane and the command line of Weft"
COPY --from=binaries /programs/weft /weft
ENTRYPOINT ["/weft"]

# nft, and what it needs of the distribution: the libraries that `ldd` names, and the loader.
FROM docker.io/library/debian:12-slim AS nftables
RUN set -eu; \
    command -v nft >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends nftables; }; \
    mkdir -p /needed/usr/sbin; \
    cp /usr/sbin/nft /needed/usr/sbin/; \
    ldd /usr/sbin/nft | grep -o '/[^ ]* (0x' | cut -d' ' -f1 | xargs -I{} cp -L --parents {} /needed/

FROM empty AS redirect
LABEL org.opencontainers.image.title="weft-redirect" \
      org.opencontainers.image.description="Redirects the connections of a pod through its sidecar"
COPY --from=nftables /needed/ /
COPY --from=binaries /programs/weft /weft
USER 0:0
ENTRYPOINT ["/weft"]

FROM empty AS shop-auth
LABEL org.opencontainers.image.title="weft-shop-auth" \
      org.opencontainers.image.description="The auth service of Weft's demo shop"
COPY --from=binaries /programs/shop-auth /shop-auth
ENTRYPOINT ["/shop-auth"]

FROM empty AS shop-notifications
LABEL org.opencontainers.image.title="weft-shop-notifications" \
      org.opencontainers.image.description="The notifications service of Weft's demo shop"
COPY --from=binaries /programs/shop-notifications /shop-notifications
ENTRYPOINT ["/shop-notifications"]

FROM empty AS shop-orders
LABEL org.opencontainers.image.title="weft-shop-orders" \
      org.opencontainers.image.description="The orders service of Weft's demo shop"
COPY --from=binaries /programs/shop-orders /shop-orders
ENTRYPOINT ["/shop-orders"]

FROM empty AS shop-products
LABEL org.opencontainers.image.title="weft-shop-products" \
      org.opencontainers.image.description="The products service of Weft's demo shop"
COPY --from=binaries /programs/shop-products /shop-products
ENTRYPOINT ["/shop-products"]

FROM empty AS shop-users
LABEL org.opencontainers.image.title="weft-shop-users" \
      org.opencontainers.image.description="The users service of Weft's demo shop"
COPY --from=binaries /programs/shop-users /shop-users
ENTRYPOINT ["/shop-users"]

FROM empty AS shop-web
LABEL org.opencontainers.image.title="weft-shop-web" \
      org.opencontainers.image.description="The web service of Weft's demo shop"
COPY --from=binaries /programs/shop-web /shop-web
ENTRYPOINT ["/shop-web"]
