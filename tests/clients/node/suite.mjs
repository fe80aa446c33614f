// Node's etcd3, every API of it that one member without users can serve. Run: HOST:PORT, in a
// folder with node_modules.

import { createRequire } from 'node:module';
import assert from 'node:assert/strict';
import { setTimeout as later } from 'node:timers/promises';

const { Etcd3, isRecoverableError } = createRequire(`${process.cwd()}/`)('etcd3');

const SECONDS_MAX = 30;
const client = new Etcd3({ hosts: process.argv[2], dialTimeout: 5000 });
const cases = [];

function add(name, run) {
  cases.push({ name, run });
}

function bounded(promise, what) {
  const failed = later(SECONDS_MAX * 1000, null, { ref: false }).then(() => {
    throw new Error(`in vain: ${what}`);
  });
  return Promise.race([promise, failed]);
}

async function until(what, holds) {
  const end = Date.now() + SECONDS_MAX * 1000;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `in vain: ${what}`);
    await later(30);
  }
}

// The next `count` calls of an emitter's event.
function heard(emitter, event, count) {
  return bounded(
    new Promise((resolve, reject) => {
      const got = [];
      emitter.on('error', reject);
      emitter.on(event, value => {
        got.push(value);
        if (got.length === count) resolve(got);
      });
    }),
    event,
  );
}

add('put-get-delete', async c => {
  await c.put('a').value('1');
  assert.equal(await c.get('a'), '1');
  assert.equal(await c.get('a').string(), '1');
  assert.equal(await c.get('a').number(), 1);
  assert.deepEqual(await c.get('a').buffer(), Buffer.from('1'));
  assert.equal(await c.get('none'), null);
  const before = await c.put('a').value('2').getPrevious();
  assert.equal(before.value.toString(), '1');
  assert.equal(await c.get('a').exists(), true);
  await c.put('a').touch();
  assert.equal(await c.get('a'), '2');
  const gone = await c.delete().key('a').getPrevious();
  assert.equal(gone[0].value.toString(), '2');
  assert.equal(await c.get('a').exists(), false);
  await c.put('j').value(JSON.stringify({ x: 1 }));
  assert.deepEqual(await c.get('j').json(), { x: 1 });
});

add('ranges', async c => {
  for (let i = 0; i < 9; i++) await c.put(`k${i}`).value(`${9 - i}`);
  const all = await c.getAll().prefix('k').strings();
  assert.deepEqual(Object.keys(all).length, 9);
  assert.deepEqual(await c.getAll().prefix('k').sort('Key', 'Descend').limit(2).keys(), ['k8', 'k7']);
  assert.deepEqual(await c.getAll().prefix('k').sort('Value', 'Ascend').limit(1).keys(), ['k8']);
  assert.equal(await c.getAll().prefix('k').count(), 9);
  assert.deepEqual(await c.getAll().inRange({ start: 'k2', end: 'k4' }).keys(), ['k2', 'k3']);
  assert.deepEqual((await c.getAll().prefix('k').numbers()).k3, 6);
  assert.equal((await c.getAll().all().keys()).length, 9);
  const gone = await c.delete().range(c.range({ start: 'k0', end: 'k2' }));
  assert.equal(gone.deleted, '2');
  assert.equal((await c.delete().prefix('k')).deleted, '7');
});

add('old-revisions', async c => {
  const put = await c.put('a').value('1');
  await c.put('a').value('2');
  assert.equal(await c.get('a').revision(put.header.revision), '1');
  assert.equal(await c.get('a').serializable(true), '2');
});

add('transactions', async c => {
  await c.put('a').value('1');
  const done = await c
    .if('a', 'Value', '==', '1')
    .and('a', 'Version', '>', 0)
    .and('none', 'Create', '==', 0)
    .then(c.put('b').value('2'), c.get('a'), c.delete().key('a'))
    .else(c.put('b').value('wrong'))
    .commit();
  assert.equal(done.succeeded, true);
  assert.equal(done.responses[1].response_range.kvs[0].value.toString(), '1');
  assert.equal(await c.get('a'), null);
  const other = await c.if('b', 'Mod', '==', 0).then(c.put('b').value('x')).else(c.get('b')).commit();
  assert.equal(other.succeeded, false);
  assert.equal(other.responses[0].response_range.kvs[0].value.toString(), '2');
});

add('stm', async c => {
  await c.put('count').value(0);
  await Promise.all(
    [1, 2, 3, 4].map(() =>
      c.stm({ retries: 50 }).transact(async tx => {
        const count = await tx.get('count').number();
        await tx.put('count').value(count + 1);
      }),
    ),
  );
  assert.equal(await c.get('count').number(), 4);
});

add('watch', async c => {
  const watcher = await c.watch().prefix('w').create();
  const puts = heard(watcher, 'put', 5);
  const deletes = heard(watcher, 'delete', 1);
  for (let i = 0; i < 5; i++) await c.put(`w${i}`).value(`${i}`);
  await c.delete().key('w0');
  assert.deepEqual((await puts).map(kv => kv.value.toString()), ['0', '1', '2', '3', '4']);
  assert.equal((await deletes)[0].key.toString().slice(-2), 'w0');
  await watcher.cancel();
});

add('watch-from-history', async c => {
  const put = await c.put('a').value('1');
  await c.put('a').value('2');
  const watcher = await c.watch().key('a').startRevision(put.header.revision).create();
  const got = await heard(watcher, 'put', 2);
  assert.deepEqual(got.map(kv => kv.value.toString()), ['1', '2']);
  await watcher.cancel();
});

add('watch-options', async c => {
  await c.put('a').value('1');
  const watcher = await c.watch().key('a').withPreviousKV().only('put').create();
  const got = new Promise(resolve => watcher.on('put', (kv, before) => resolve([kv, before])));
  await c.put('a').value('2');
  const [kv, before] = await bounded(got, 'put');
  assert.deepEqual([kv.value.toString(), before.value.toString()], ['2', '1']);
  const deletes = await c.watch().key('a').only('delete').create();
  const gone = heard(deletes, 'delete', 1);
  await c.put('a').value('3');
  await c.delete().key('a');
  await gone;
  await watcher.cancel();
  await deletes.cancel();
});

add('watch-many', async c => {
  const watchers = await Promise.all([...Array(50).keys()].map(i => c.watch().key(`k${i}`).create()));
  const all = watchers.map(watcher => heard(watcher, 'put', 1));
  for (let i = 0; i < 50; i++) await c.put(`k${i}`).value('x');
  await Promise.all(all);
  await Promise.all(watchers.map(watcher => watcher.cancel()));
});

add('leases', async c => {
  const lease = client.lease(60);
  const id = await lease.grant();
  await c.put('a').value('1').lease(id);
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.equal(left.grantedTTL, '60');
  assert.equal(left.keys.length, 1);
  await lease.keepaliveOnce();
  const listed = await client.leaseClient.leaseLeases();
  assert.ok(listed.leases.some(entry => entry.ID === id));
  await lease.revoke();
  assert.equal(await c.get('a'), null);
});

add('lease-keeps-alive', async c => {
  const lease = client.lease(2);
  await lease.grant();
  await c.put('a').value('1').lease(await lease.grant());
  await heard(lease, 'keepaliveSucceeded', 4);
  assert.equal(await c.get('a'), '1');
  lease.release();
  await until('it expires', async () => (await c.get('a')) === null);
});

add('lease-lost', async () => {
  const lease = client.lease(3);
  const id = await lease.grant();
  const lost = bounded(new Promise(resolve => lease.on('lost', resolve)), 'lost');
  await client.leaseClient.leaseRevoke({ ID: id });
  await lost;
});

add('lock', async () => {
  const lock = client.lock('n-lock');
  await lock.acquire();
  await assert.rejects(client.lock('n-lock').acquire());
  await lock.release();
  let inside = 0;
  await client.lock('n-lock').do(async () => {
    inside++;
  });
  assert.equal(inside, 1);
});

add('election', async () => {
  const first = client.election('n-election', 5);
  const one = first.campaign('one');
  await heard(one, 'elected', 1);
  assert.equal(await first.leader(), 'one');
  const observer = await client.election('n-election', 5).observe();
  const two = client.election('n-election', 5).campaign('two');
  const won = heard(two, 'elected', 1);
  await one.proclaim('still one');
  await until('seen', () => observer.leader() === 'still one');
  await one.resign();
  await won;
  await until('seen', () => observer.leader() === 'two');
  await two.resign();
  await observer.cancel();
});

add('namespace', async c => {
  const inside = c.namespace('in/');
  await inside.put('a').value('1');
  assert.equal(await c.get('in/a'), '1');
  assert.deepEqual(await inside.getAll().keys(), ['a']);
  assert.equal((await inside.delete().all()).deleted, '1');
});

add('upkeep', async () => {
  const status = await client.maintenance.status();
  assert.match(status.version, /^3\./);
  assert.ok(Number(status.dbSize) > 0 && Number(status.raftIndex) > 0);
  const members = await client.cluster.memberList({});
  assert.equal(members.members.length, 1);
  assert.equal(status.leader, members.members[0].ID);
  assert.deepEqual((await client.maintenance.alarm({ action: 'Get', memberID: 0, alarm: 'None' })).alarms, []);
  await client.maintenance.hash();
  await client.maintenance.defragment();
});

add('compaction', async c => {
  const put = await c.put('a').value('1');
  const last = await c.put('a').value('2');
  await client.kv.compact({ revision: last.header.revision, physical: true });
  await assert.rejects(
    async () => await c.get('a').revision(put.header.revision),
    error => /compacted/.test(error.message) && !isRecoverableError(error),
  );
});

add('errors', async () => {
  await assert.rejects(async () => await client.put('').value('x'), /key is not provided/);
  await assert.rejects(
    async () => await client.kv.put({ key: Buffer.from('a'), value: Buffer.from(''), lease: '77777' }),
    /requested lease not found/,
  );
});

let failed = 0;
for (const { name, run } of cases) {
  const own = client.namespace(`/node-${name}/`);
  try {
    await own.delete().all(); // of an earlier run
    await bounded(run(own), name);
    console.log('ok', name);
  } catch (error) {
    failed++;
    console.log(`FAIL ${name}: ${error.message?.replaceAll('\n', ' ')}\n\t${error.stack?.replaceAll('\n', '\n\t')}`);
  }
}
client.close();
console.log(`cases ${cases.length} failed ${failed}`);
process.exit(failed > 0 ? 1 : 0);
