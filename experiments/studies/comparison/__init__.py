"""The networks RepVGG is compared with: costs and speed on this machine's device."""
