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
                "num_slots": 0,  # K; 0: as the ad log says; 1 for sequences.
                "interactions": 0.0,  # Share of co-occurrence in embeddings (sequences).
                "exposure_weight": 0.1,  # Loss weight of what was only shown; clicks have 1.
                "fractions": (0.8, 0.1),  # Ad logs: shares of "pretrain" and "align" in time.
                "market": {
                    "size": "tiny",  # tiny, small or large.
                    "world": "synthetic",  # synthetic or yelp.
                    "sequences": "",  # World yelp: folder of the public sequences.
                    "num_slots": 0,  # K; 0: as the size says.
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
                "multi_token": True,  # False: creatives are predicted apart (EGA-mtp).
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
                "split": "test",  # What experiments.evaluate measures.
            },
            "reward": {
                "width": 64,
                "num_heads": 8,
                "hidden": 128,
                "blocks": 1,
                "permutation_aware": True,  # False: the pointwise control.
                "dropout_rate": 0.0,
                "dtype": "float32",
                "batch_size": 128,
                "num_steps": 3000,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_steps": 100,
                "weight_decay": 0.3,
                "clip_norm": 1.0,
                "checkpoint_every": 1000,
                "log_every": 50,
                "evaluate_every": 1000,
            },
            "allocation": {
                "num_beams": 32,  # S
                "token_bid": "max",  # max or mean (the ablation EGA-bid).
                "scope": "prefix",  # Items that carry a token: prefix or layer.
                "alpha": 1.2,  # How much bids matter (21).
                "beta": 2.0,  # Floor of token weights (21).
                "kappa": 0.0,  # Currency that one expected click is worth beside its price.
                "reserve": 0.0,  # Least bid and price per click.
                "max_ads": 0,  # Most ads in a slate; 0: no limit.
                "min_gap": 0,  # Fewest organic items between two ads.
                "bid_free": False,  # Search without bids; with Clarke's prices exactly truthful.
            },
            "alignment": {
                "part": "head_and_last_block",  # What is trained, or all.
                "joint_rows": 0,  # Not 0: one stage with the pre-training (the ablation EGA-end).
                "kl_weight": 0.0,  # Of the divergence from the pre-trained policy, per nat.
                "batch_size": 32,
                "num_steps": 200,
                "learning_rate": 1e-4,
                "clip_norm": 1.0,
                "checkpoint_every": 50,
                "log_every": 10,
            },
            "payment": {
                "hidden": (128, 32, 10),
                "heads": ("rate", "threshold"),  # Trained one by one, on the same table.
                # Multiples of what its rivals ask of an ad at which its clicks are looked up.
                "probes": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
                "num_sessions": 2048,  # Of the table of reports.
                "num_reports": 10,  # J
                "tabulated_at_once": 16,
                "batch_size": 128,
                "num_steps": 3000,
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "clip_norm": 1.0,
                "lagrangian": {
                    "rho": 10.0,
                    "rho_growth": 1.0,  # Per update of the multipliers.
                    "rho_max": 1000.0,
                    "multiplier_init": 20.0,
                    "update_every": 10,
                    "regret": "rerun",  # rerun, or soft for studies.
                    "sampled": 0,  # Misreports drawn per step; 0: all.
                    "every_report": True,  # Each is the truth of one more advertiser.
                },
                "checkpoint_every": 1000,
                "log_every": 50,
            },
            "one_rec": {"strength": 0.1},  # Of DPO's preferences; its other settings: alignment.
            "cascade": cascade(),
            "auction": {  # What is auctioned by, and how it is measured.
                "system": "ega",  # ega, gr (OneRec, Peri-CR, GSP) or mca (the cascade).
                "rule": "threshold",  # first_price, gsp, clarke, rate or threshold.
                # At most so many, in whole batches evenly spread over the split:
                "num_sessions": 128,  # whose every report is tried,
                "num_served": 512,  # and those that tables count money and clicks of.
                "batch_size": 8,
                "num_losing": 4,  # Ads outside a slate whose reports are tried too.
            },
        }
    )


def cascade() -> dict:
    """Settings of the stages of MCA, some of which GR uses too."""
    logged = {
        "batch_size": 128,
        "num_steps": 3000,  # As many samples as the reward model sees.
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.3,
        "clip_norm": 1.0,
        "checkpoint_every": 1000,
        "log_every": 50,
        "evaluate_every": 1000,
    }
    sizes = {"width": 64, "num_heads": 8, "hidden": 128, "dtype": "float32"}
    rewarded = logged | {"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 64}
    rewarded |= {"num_steps": 500}
    return {
        "num_recalled": 20,  # Ads that TIGER lets through.
        "tiger": logged | {"weight_decay": 0.0},
        "hstu": logged | sizes | {"blocks": 1, "dropout_rate": 0.2},
        "peri_cr": logged | sizes | {"dropout_rate": 0.2},
        "cga": rewarded | sizes,
        "cross_dqn": rewarded | sizes | {"screen": 5, "discount": 1.0, "epsilon": 0.3, "tau": 0.01},
    }


def choose(variant: str, variants: dict) -> dict:
    """Picks a variant's settings.

    Raises:
      ValueError: there is no such variant; the message lists those there are.
    """
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; valid variants: {', '.join(variants)}")
    return variants[variant]
