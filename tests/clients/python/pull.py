"""Pulls with one of the clients of Python's registry and writes what came.

usage: pull.py CLIENT http|https HOST[:PORT] NAME TAG DIRECTORY

Clients of images write each blob to a file that is named by the hex digits of its digest; the others write what the
client itself makes of the artifact. Proxy and authorities come from the environment, as each client reads it.
"""

import json
import sys
from pathlib import Path


def oras(scheme, host, name, tag, directory):
    """oras-py: the files of an artifact, by their titles."""
    import oras.client

    client = oras.client.OrasClient(insecure=scheme == "http")
    client.pull(target=f"{host}/{name}:{tag}", outdir=str(directory))


def dxf(scheme, host, name, tag, directory):
    """python-dxf: the blobs of an image."""
    import dxf

    repository = dxf.DXF(host, name, insecure=scheme == "http")
    for digest in blobs_of(json.loads(repository.get_manifest(tag))):
        write(directory, digest, b"".join(repository.pull_blob(digest)))


def drca(scheme, host, name, tag, directory):
    """docker-registry-client-async: asks what the tag is, then the image and its blobs."""
    import asyncio

    from docker_registry_client_async import DockerRegistryClientAsync, FormattedSHA256, ImageName

    async def pull():
        image = ImageName.parse(f"{host}/{name}:{tag}")
        async with DockerRegistryClientAsync() as client:
            head = await client.head_manifest(image, protocol=scheme)
            assert head.result, head.client_response
            answer = await client.get_manifest(image, protocol=scheme)
            assert answer.manifest.get_digest() == head.digest
            for digest in blobs_of(answer.manifest.get_json()):
                blob = await client.get_blob(image, FormattedSHA256.parse(digest), protocol=scheme)
                write(directory, digest, blob.blob)

    asyncio.run(pull())


def helm(scheme, host, name, tag, directory):
    """Helm 4, which comes as a library: the archive of a chart."""
    from helm_python import RegistryClient, pull

    plain = scheme == "http"
    with RegistryClient(plain_http=plain) as client:
        pull(f"oci://{host}/{name}", client=client, version=tag, destination=directory, plain_http=plain)


def blobs_of(manifest):
    """The digests of all blobs of an image, its configuration first."""
    return [blob["digest"] for blob in [manifest["config"], *manifest["layers"]]]


def write(directory, digest, content):
    """Writes a blob to the file of its digest."""
    (directory / digest.split(":")[1]).write_bytes(content)


if __name__ == "__main__":
    chosen, *place, into = sys.argv[1:]
    {"oras": oras, "dxf": dxf, "drca": drca, "helm": helm}[chosen](*place, Path(into))
