// Drives the npm `consul` client against the address given: exits well and says so if all was as against Consul.
"use strict";
const assert = require("assert");
const Consul = require("consul");

async function main(at) {
  const [host, port] = at.split(":");
  const client = new Consul({ host, port });
  const first = (await client.session.create({ name: "first", ttl: "10s", lockdelay: "0s" })).ID;
  const second = (await client.session.create({ behavior: "delete", lockdelay: "0s" })).ID;
  assert.strictEqual((await client.session.get(first)).Name, "first");
  assert.strictEqual((await client.session.list()).length, 2);
  assert.strictEqual((await client.session.node("home")).length, 2);
  assert.strictEqual((await client.session.renew(first))[0].ID, first);
  assert.strictEqual(await client.kv.set({ key: "lock", value: "1", acquire: first }), true);
  assert.ok(!(await client.kv.set({ key: "lock", value: "2", acquire: second })));

  const watch = client.watch({ method: client.kv.get, options: { key: "lock", wait: "20s" } });
  await new Promise((resolve, reject) => {
    watch.on("error", reject);
    watch.once("change", async (held) => {
      try {
        assert.strictEqual(held.Session, first);
        watch.once("change", (free) => {
          try {
            assert.strictEqual(free.Session, undefined);
            resolve();
          } catch (error) {
            reject(error);
          }
        });
        await client.session.destroy(first);
      } catch (error) {
        reject(error);
      }
    });
  });
  watch.end();

  assert.strictEqual(await client.kv.set({ key: "lock", value: "2", acquire: second }), true);
  await client.session.destroy(second);
  assert.ok(!(await client.kv.get("lock")));
  await assert.rejects(client.kv.set({ key: "lock", value: "x", acquire: first }), /invalid session/);

  const value = Buffer.from("1").toString("base64");
  const done = await client.transaction.create([
    { KV: { Verb: "set", Key: "a", Value: value } },
    { KV: { Verb: "get", Key: "a" } },
  ]);
  assert.deepStrictEqual(done.Results.map((one) => one.KV.Key), ["a", "a"]);
  await assert.rejects(client.transaction.create([{ KV: { Verb: "cas", Key: "a", Value: value, Index: 1 } }]));

  await client.agent.service.register({ name: "web", id: "w", check: { ttl: "30s" } });
  await client.agent.check.pass("service:w");
  assert.strictEqual((await client.health.service({ service: "web", passing: true })).length, 1);
  await catalogue(client);
}

// Reads the catalogue every way the client can, and puts checks and maintenance on the node.
async function catalogue(client) {
  assert.deepStrictEqual((await client.catalog.node.list()).map((node) => node.Node), ["home"]);
  assert.deepStrictEqual(Object.keys((await client.catalog.node.services("home")).Services), ["consul", "w"]);
  assert.deepStrictEqual(await client.catalog.service.list(), { consul: [], web: [] });
  const [row] = await client.catalog.service.nodes("web");
  assert.deepStrictEqual([row.Node, row.ServiceID], ["home", "w"]);
  assert.deepStrictEqual((await client.health.node("home")).map((check) => check.CheckID), ["serfHealth", "service:w"]);
  assert.deepStrictEqual((await client.health.checks("web")).map((check) => check.Status), ["passing"]);

  await client.agent.check.register({ name: "disk", ttl: "30s" });
  assert.deepStrictEqual((await client.health.state("critical")).map((check) => check.CheckID), ["disk"]);
  assert.strictEqual((await client.health.service({ service: "web", passing: true })).length, 0);
  await client.agent.check.deregister("disk");
  assert.deepStrictEqual(Object.keys(await client.agent.check.list()), ["service:w"]);

  const watch = client.watch({ method: client.health.service, options: { service: "web", passing: true, wait: "20s" } });
  const emptied = new Promise((resolve, reject) => {
    watch.on("error", reject);
    watch.on("change", (found) => found.length === 0 && resolve());
  });
  await client.agent.maintenance({ enable: true, reason: "moving" });
  await emptied;
  watch.end();
  await client.agent.maintenance({ enable: false });
  assert.strictEqual((await client.health.service({ service: "web", passing: true })).length, 1);
}

main(process.argv[2]).then(
  () => console.log("all is well"),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
