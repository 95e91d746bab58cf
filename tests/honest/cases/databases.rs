//! Protocols that the mesh does not know, under their own load tools.

use super::Case;
use crate::{
    server::{Protocol, Server},
    tool::{Load, Tool},
};

pub(super) fn cases() -> Vec<Case> {
    let tcp =
        |name: &str, needs| Server::new(name, &format!("${{SOURCES}}/servers/{name} ${{PORT}}"), Protocol::Tcp, needs);
    let redis = tcp("redis", &["redis-server"]);
    let postgres = tcp("postgres", &["pgbench", "/usr/lib/postgresql"]);
    let mariadb = tcp("mariadb", &["mariadbd", "sysbench"]);
    let nats = tcp("nats", &["nats-server"]);
    let load = |tool, command: &str, needs: &[&'static str]| [Load::new(tool, command.to_owned(), needs)];
    let redis_load = |words: &str| {
        load(Tool::Redis, &format!("redis-benchmark -h 127.0.0.1 -p ${{PORT}} {words}"), &["redis-benchmark"])
    };
    let pgbench = |words: &str| {
        let command = format!("pgbench -h 127.0.0.1 -p ${{PORT}} -U weft -T ${{SECONDS}} -n {words} weft");
        load(Tool::Pgbench, &command, &["pgbench"])
    };
    let sysbench = |words: &str| {
        let at = "--mysql-host=127.0.0.1 --mysql-port=${PORT} --mysql-user=root --table-size=10000";
        load(Tool::Sysbench, &format!("sysbench {words} {at} --time=${{SECONDS}} run"), &["sysbench"])
    };
    let bench = |words: &str| {
        load(
            Tool::Nats,
            &format!("${{HONEST}}/bin/nats-bench -s nats://127.0.0.1:${{PORT}} {words} honest"),
            &["bin/nats-bench"],
        )
    };
    vec![
        Case::new("redis: redis-benchmark, 50", &redis, redis_load("-c 50 -n 20000 -t set,get")),
        Case::new("redis: redis-benchmark, 500, pipelined", &redis, redis_load("-c 500 -P 16 -n 100000 -t get")),
        Case::new("postgres: pgbench, 16", &postgres, pgbench("-c 16")),
        Case::new("postgres: pgbench, 100, prepared, selects", &postgres, pgbench("-c 100 -M prepared -S")),
        Case::new("postgres: pgbench, a connection for each", &postgres, pgbench("-c 8 -C -S")),
        Case::new("mariadb: sysbench, 16", &mariadb, sysbench("oltp_read_only --threads=16")),
        Case::new("mariadb: sysbench, 100 point selects", &mariadb, sysbench("oltp_point_select --threads=100")),
        Case::new("nats: nats-bench, 4 to 4", &nats, bench("-np 4 -ns 4 -n 100000 -ms 128")),
        Case::new("nats: nats-bench, 16 KB", &nats, bench("-np 2 -ns 2 -n 10000 -ms 16384")),
    ]
}
