// Pulls an image with docker-registry-client, and writes each blob to a file that is named by the hex digits of its
// digest. It is told where the client is installed, as that is not beside this file.
//
// usage: node pull.js CLIENT http|https HOST[:PORT] NAME TAG DIRECTORY
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { pipeline } = require('node:stream/promises');

async function main(installed, scheme, host, name, tag, directory) {
    const registry = require(installed);
    const client = registry.createClientV2({ name: `${scheme}://${host}/${name}`, maxSchemaVersion: 2 });
    const manifest = await new Promise((resolve, reject) => {
        client.getManifest({ ref: tag }, (error, found) => (error ? reject(error) : resolve(found)));
    });
    for (const { digest } of [manifest.config, ...manifest.layers]) {
        const blob = await new Promise((resolve, reject) => {
            client.createBlobReadStream({ digest }, (error, stream) => (error ? reject(error) : resolve(stream)));
        });
        await pipeline(blob, fs.createWriteStream(path.join(directory, digest.split(':')[1])));
    }
    client.close();
}

main(...process.argv.slice(2)).catch((error) => {
    console.error(error);
    process.exitCode = 1;
});
