"""A model's name to a folder on this disk, and a folder to the hub. The only part that imports huggingface_hub.

In: `demo`, a folder, a hub repository such as `LiquidAI/LFM2-VL-450M`. Out: a folder; a commit on the hub.
"""

from .cache import CachedModel, cache_folder, cached_models, free_bytes, remove_models
from .cards import card_metadata, write_model_card
from .download import LICENCES, Progress, is_local, resolve, resolve_checked
from .names import check_new_name, is_repository, of_page
from .upload import check_writable, publish
