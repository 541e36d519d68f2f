"""MoE Lottery Subnetworks: rounds of estimating, dropping and finetuning."""
