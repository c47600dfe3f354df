"""The fields that every config has, with their defaults; letters as in `ega_jax/types.py`."""

from ml_collections import ConfigDict


def base(name: str) -> ConfigDict:
    """Returns the fields shared by all configs.

    Args:
      name: names the default workdir, `runs/NAME`.
    """
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "data": {
                "path": "",  # Folder in one of the two formats; empty: the market below.
                "history_length": 20,  # T
                "num_slots": 0,  # K; 0: as the ad log says.
                "exposure_weight": 0.1,  # Loss weight of what was shown but not clicked.
                "fractions": (0.8, 0.1),  # Ad logs: shares of "pretrain" and "align" in time.
                "market": {
                    "size": "tiny",  # tiny, small or large.
                    "world": "synthetic",  # synthetic or yelp.
                    "sequences": "",  # World yelp: folder of the public sequences.
                    "seed": 0,
                },
            },
            "tokenizer": {
                "kind": "rqvae",  # rqvae or kmeans.
                "num_layers": 3,  # C
                "num_codes": 256,  # W
                "disambiguate": False,  # One more code tells items with equal codes apart.
                "num_iterations": 25,  # Of k-means.
                "hidden": (512, 256),  # Of the RQ-VAE's encoder.
                "latent": 64,
                "num_steps": 2000,  # Of the RQ-VAE, as the next three.
                "batch_size": 1024,
                "learning_rate": 1e-3,
                "checkpoint_every": 1000,
            },
            "generator": {
                "width": 128,  # D
                "num_heads": 4,
                "hidden": 512,
                "encoder_blocks": 3,
                "decoder_blocks": 3,
                "dropout_rate": 0.0,
                "history_dropout": 0.0,  # Share of behaviours left out in training.
                "dtype": "float32",  # Of the computation; bfloat16 on GPU and TPU.
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "schedule": "cosine",  # constant or cosine.
                "warmup_steps": 100,
                "final_fraction": 0.01,  # Of the peak, where the cosine ends.
                "weight_decay": 0.0,
                "clip_norm": 1.0,
            },
            "training": {
                "batch_size": 128,  # B
                "sort_by_length": True,  # Sequences: batches of like length, less padding.
                "existing_codes_only": True,  # Softmax over the codes that exist, as in search.
                "num_steps": 1000,
                "checkpoint_every": 500,
                "log_every": 50,
                "evaluate_every": 500,
            },
            "evaluation": {
                "batch_size": 64,
                "num_beams": 50,  # S
                "validation_rows": 1024,  # Measured every `training.evaluate_every` steps.
                "split": "test",  # Measured at the end.
            },
        }
    )


def choose(variant: str, variants: dict) -> dict:
    """Picks a variant's settings.

    Raises:
      ValueError: there is no such variant; the message lists those there are.
    """
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; valid variants: {', '.join(variants)}")
    return variants[variant]
