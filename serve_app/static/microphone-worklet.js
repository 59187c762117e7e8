// On the audio thread: samples of the microphone as 16-bit integers, a tenth of a second at a time.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.loudest = 0;
  }

  process([[samples]]) {
    for (const sample of samples ?? []) {
      const limited = Math.max(-1, Math.min(1, sample));
      this.loudest = Math.max(this.loudest, Math.abs(limited));
      this.block[this.filled++] = limited * 32767;
      if (this.filled === this.block.length) {
        this.port.postMessage({ block: this.block, level: this.loudest });
        this.block = new Int16Array(this.block.length);
        this.filled = this.loudest = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
