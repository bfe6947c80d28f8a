"""The networks RepVGG is compared with: costs and speed on the device that is here."""
