"""Patches every HTTP proxy of Serve in the cluster, see proxy_patch.py."""

import asyncio
import logging

import ray
from ray import cloudpickle
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from starlette.responses import Response

from serve_app.cluster import message_socket, proxy_patch
from serve_app.cluster.backpressure import MAX_HELD_BYTES

log = logging.getLogger("ray.serve")

PROXY_SCAN_S = 5.0
"""How often the cluster is searched for new proxies, seconds."""

PROXY_TIMEOUT_S = 10.0
"""How long a proxy may take to apply the patch, seconds."""

cloudpickle.register_pickle_by_value(proxy_patch)  # type: ignore[no-untyped-call]
cloudpickle.register_pickle_by_value(message_socket)  # type: ignore[no-untyped-call]


async def patch_proxies(lost: Response, unserved: Response) -> None:
    """Patch all HTTP proxies of the cluster, including those that start later. Runs until cancelled.

    `lost` is their response to a request whose ingress is lost, `unserved` to one while no application is deployed.
    """
    # Actor ids, since a restarted proxy has the name of its predecessor.
    patched: set[str] = set()
    while True:
        await asyncio.to_thread(_patch_present, patched, lost, unserved)
        await asyncio.sleep(PROXY_SCAN_S)


def patch_present_proxies(lost: Response, unserved: Response) -> None:
    """The same for those that run now, once; one that cannot be patched yet is left to `patch_proxies`."""
    _patch_present(set(), lost, unserved)


def _patch_present(patched: set[str], lost: Response, unserved: Response) -> None:
    try:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == SERVE_NAMESPACE and actor["name"].startswith(SERVE_PROXY_NAME):
                _patch(actor["name"], patched, lost, unserved)
    except Exception as error:
        log.warning("new proxies are not patched: listing the proxies failed: %s", error)


def _patch(name: str, patched: set[str], lost: Response, unserved: Response) -> None:
    try:
        proxy = ray.get_actor(name, namespace=SERVE_NAMESPACE)
        actor_id = proxy._actor_id.hex()
        if actor_id not in patched:
            ray.get(proxy.__ray_call__.remote(proxy_patch.patch, MAX_HELD_BYTES, lost, unserved), timeout=PROXY_TIMEOUT_S)
            patched.add(actor_id)
    except Exception as error:
        log.warning("patching the proxy %s failed, will be tried again: %r", name, error)
