"""The systems that EGA is compared with: GR, the cascade MCA, and retrieval baselines."""
